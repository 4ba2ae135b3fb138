from neural_compressor.training import prepare_compression, WeightPruningConfig

##setting configs
pruning_configs = [
    {"op_names": ["layer1.*"], "pattern": "4x1"},
    {"op_names": ["layer2.*"], "pattern": "1x1", "target_sparsity": 0.5},
]
configs = WeightPruningConfig(
    pruning_configs=pruning_configs,
    target_sparsity=config.target_sparsity,
    pattern=config.pattern,
    pruning_frequency=config.pruning_frequency,
    start_step=config.start_step,
    end_step=config.end_step,
    pruning_type=config.pruning_type,
)
compression_manager = prepare_compression(model=model, confs=configs)
compression_manager.callbacks.on_train_begin()  ## insert hook
for epoch in range(num_train_epochs):
    model.train()
    for step, batch in enumerate(train_dataloader):
        compression_manager.callbacks.on_step_begin(step)  ## insert hook
        outputs = model(**batch)
        loss = outputs.loss
        loss.backward()
        compression_manager.callbacks.on_before_optimizer_step()  ## insert hook
        optimizer.step()
        compression_manager.callbacks.on_after_optimizer_step()  ## insert hook
        lr_scheduler.step()
        model.zero_grad()
compression_manager.callbacks.on_train_end()
