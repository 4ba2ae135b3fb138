from neural_compressor.experimental import Quantization, Pruning, Scheduler

prune = Pruning("prune_conf.yaml")
quantizer = Quantization("quantization_aware_training_conf.yaml")
scheduler = Scheduler()
scheduler.model = model
combination = scheduler.combine(prune, quantizer)
scheduler.append(combination)
opt_model = scheduler.fit()
