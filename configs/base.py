"""The defaults that every recipe starts from; utils/settings.py explains each setting."""

from easydict import EasyDict as edict  # noqa: N813

config = edict()

# Data
config.rec = ""
config.class_map = None
config.rec_weights = None
config.num_classes = "auto"
config.num_image = None
config.image_size = (112, 112)
config.val_targets = []
config.num_workers = 2
config.shuffle_chunk = 0
config.on_bad_sample = "stop"
config.dali = False
config.dali_aug = False
config.augment = None

# Backbone
config.network = "r50"
config.embedding_size = 512
config.dropout = 0.0
config.sync_bn = False
config.gradient_checkpointing = None
config.compile = False
config.init_backbone = None
config.freeze_backbone = False
config.freeze_bn = False

# Margin loss
config.loss = "arcface"
config.scale = 64.0
config.margin = None
config.margin_list = None
config.loss_options = None
config.interclass_filtering_threshold = 0.0

# Classifier
config.head_size = None
config.negative_rate = None
config.head_scope = "batch"
config.head_storage = "device"
config.head_folder = None
config.head_cache_gib = 0.0
config.sample_rate = 1.0
config.classifier_amp = False
config.init_centres = None
config.centres_map = None

# Optimization
config.optimizer = "sgd"
config.lr = 0.1
config.lr_batch = None
config.lr_scaling = "linear"
config.lr_schedule = "poly"
config.momentum = 0.9
config.nesterov = False
config.row_momentum = None
config.row_lr = 1.0
config.row_idle = None
config.weight_decay = 5e-4
config.decay_norms_and_biases = True
config.ema_decay = 0.0
config.clip_grad_norm = 5.0
config.batch_size = 128
config.gradient_acc = 1
config.num_epoch = 20
config.warmup_epoch = 0
config.lr_power = None
config.lr_end = 0.0
config.lr_steps = None
config.lr_gamma = 0.1
config.precision = "auto"
config.fp16 = None
config.bf16 = None
config.gradient_compression = None
config.max_nonfinite = 10

# Run
config.output = None
config.resume = False
config.overwrite = False
config.seed = 2048
config.device = "auto"
config.timeout_s = 1800.0
config.verbose = 2000
config.frequent = 10
config.save_all_states = True
config.checkpoint_steps = 0
config.checkpoint_minutes = 0.0
config.checkpoint_full_every = 5
config.keep_checkpoints = 2
config.keep_best = None

# Weights & Biases
config.using_wandb = False
config.wandb_key = None
config.wandb_entity = None
config.wandb_project = None
config.wandb_resume = False
config.wandb_log_all = False
config.save_artifacts = False
config.suffix_run_name = None
config.notes = None

config.score = None
