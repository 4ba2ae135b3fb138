# Quantization code
from neural_compressor.experimental import Quantization, common

calib_dataloader = eval_dataloader
quantizer = Quantization("conf.yaml")
quantizer.eval_func = eval_func
quantizer.calib_dataloader = calib_dataloader
quantizer.model = common.Model(model)
model = quantizer.fit()

from neural_compressor.utils.load_huggingface import save_for_huggingface_upstream

save_for_huggingface_upstream(model, tokenizer, output_dir)
