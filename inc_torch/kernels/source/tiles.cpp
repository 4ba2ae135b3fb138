#include "tiles.h"

#ifdef INC_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace inc {

namespace {

bool wanted = true;

// Linux saves the registers of tiles for those who asked for it, once a process.
bool granted() {
#ifdef INC_TILES
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

}  // namespace

bool tiles_in_use() {
    static const bool possible = granted();
    return possible && wanted;
}

}  // namespace inc

extern "C" int64_t inc_uses_tiles() { return inc::tiles_in_use(); }

extern "C" int64_t inc_use_tiles(int64_t wish) {
    inc::wanted = wish != 0;
    return inc_uses_tiles();
}
