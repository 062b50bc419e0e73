"""Every config field once, with its unit and its default. An experiment changes some and invents none.

A field that is added later has the default that does what was done without it: runs from before have no such field,
and go on with the default (`experiment.config_files.with_defaults`).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the CIFAR-10 recipe of Ho et al. 2020, with one global clip and an EMA that warms up."""
    config = ConfigDict()

    config.data = ConfigDict()
    # digits, mnist, fashion_mnist, cifar10, image_folder, array, or the name of a TFDS data set.
    config.data.name = "cifar10"
    # The folder of pictures (or the file that `python -m ddpm_jax.data pack` made of it), the array file, or the
    # folder with the original files of mnist, fashion_mnist and cifar10. Empty: through TFDS.
    config.data.path = ""
    config.data.data_dir = ""  # where TFDS keeps its data sets, or one prepared data set; empty: TFDS's own place
    config.data.split = "train"  # also slices, such as train[:95%]
    config.data.eval_split = "test"  # held out, for the eval loss; empty: none
    config.data.image_size = (32, 32)  # height, width in pixels; pictures are resized and centre-cropped to it
    config.data.num_channels = 3  # 1 grey, 3 RGB
    config.data.flip = True  # mirror half of the pictures left-right

    config.schedule = ConfigDict()
    # linear, quadratic, constant, warmup10, warmup50, jsd, cosine, sigmoid, geometric.
    config.schedule.name = "linear"
    config.schedule.num_steps = 1000  # T
    config.schedule.beta_start = 1e-4  # "linear" scales both ends by 1000/T
    config.schedule.beta_end = 0.02
    config.schedule.zero_terminal_snr = False  # move alpha-bar to 0 at the last step; for x_0 and v

    config.objective = ConfigDict()
    config.objective.name = "diffusion"  # what is trained. Its own fields are in the group of its name.

    config.diffusion = ConfigDict()
    config.diffusion.prediction = "eps"  # what the network predicts: eps, x_0, v, mean (of x_(t-1))
    config.diffusion.loss = "simple"  # simple (mean square), l1, huber, vlb, rescaled_vlb (T times vlb), hybrid
    config.diffusion.huber_delta = 1.0
    config.diffusion.vlb_lambda = 0.001  # hybrid = simple + vlb_lambda * (the bound, summed over t, in bits/dim)
    # Of p: fixed_small (beta-tilde), fixed_large (beta), learned (its log), learned_range (between the two).
    config.diffusion.variance = "fixed_large"
    config.diffusion.weighting = "none"  # of simple, l1, huber by t: none, min_snr, p2
    config.diffusion.min_snr_gamma = 5.0
    config.diffusion.p2_gamma = 1.0
    config.diffusion.p2_k = 1.0

    config.codec = ConfigDict()
    # Between images and the x_0 that diffuses: pixels (uint8 scaled to [-1, 1]).
    config.codec.name = "pixels"

    config.condition = ConfigDict()
    # Part of the training images whose class the network is not told, such as 0.1: for classifier-free guidance.
    config.condition.drop_rate = 0.0

    config.model = ConfigDict()
    # unet or conv_net (small, without levels: for tests and trials). Its own fields are in the group of its name.
    config.model.name = "unet"
    config.model.dtype = "float32"  # of the computation, float32 or bfloat16; parameters are float32
    config.model.num_classes = 0  # > 0: the network is told the class of each picture, its label in the data
    # The backward pass computes the inside of every block over again and does not keep it: less memory, more time.
    config.model.remat = False

    config.unet = ConfigDict()
    config.unet.channels = 128  # width of the first level
    config.unet.channel_mults = (1, 2, 2, 2)  # width of each level over `channels`; a level halves the picture
    config.unet.num_res_blocks = 2  # a level
    config.unet.attention_resolutions = (16,)  # heights in pixels
    config.unet.dropout = 0.1
    config.unet.num_groups = 32  # of GroupNorm; divides every width
    config.unet.norm_eps = 1e-6  # of GroupNorm; OpenAI's codes have 1e-5
    config.unet.num_heads = 1  # of every self-attention
    config.unet.head_channels = 0  # > 0: channels of a head, whatever num_heads is
    config.unet.scale_shift_norm = False  # t scales and shifts the second norm of a block, not added before it
    config.unet.resample_in_blocks = False  # residual blocks halve and double the picture, not convolutions
    config.unet.down_padding = "end"  # of the convolution that halves: end (bottom and right), both
    config.unet.embedding_order = "sin_cos"  # of the embedding of t: sin_cos, cos_sin
    config.unet.embedding_spacing = "half_minus_1"  # of its frequencies: half_minus_1, half
    config.unet.time_scale = 1.0  # the network sees t times this; improved-diffusion's rescale_timesteps: 1000/T
    config.unet.conv_in_channels = 0  # of the first convolution; 0: unet.channels

    config.conv_net = ConfigDict()
    config.conv_net.channels = 32  # width of every layer
    config.conv_net.num_layers = 4  # a pixel sees num_layers + 2 pixels to every side

    config.optim = ConfigDict()
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 5000
    config.optim.first_step_zero = False  # warm-up n/warmup_steps, so that the first update changes nothing
    config.optim.decay_steps = 0  # > 0: cosine decay of the learning rate to 0 at this update
    # The same as parts of train.num_steps, such as 0.08 and 1.0, so that they fit a run of any length. With one of them
    # above 0 the field of steps must be 0.
    config.optim.warmup_share = 0.0
    config.optim.decay_share = 0.0
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.grad_clip = 1.0  # largest global norm of the gradient; 0: no clipping
    config.optim.clip_replicas = 0  # > 0: clip each of so many parts of the batch alone, then average
    # Of each average of the parameters (EMA), such as (0.9999, 0.999); the first is sampled and measured in training.
    config.optim.ema_decays = (0.9999,)
    config.optim.ema_start = "warmup"  # warmup, constant, copy_first

    config.train = ConfigDict()
    config.train.seed = 0
    config.train.num_steps = 800_000  # updates
    config.train.batch_size = 128  # pictures an update, over all devices
    config.train.time_sampler = "uniform"  # of t: uniform, stratified, loss_second_moment
    config.train.grad_accum_steps = 1  # parts that the batch is taken in, to save memory
    config.train.num_devices = 0  # 0: all
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 5000
    config.train.sample_every_steps = 10_000  # grids of raw and EMA weights; 0: only at the end
    config.train.keep_checkpoints = 2  # newest; the best by eval loss stays too
    # Where a loss or gradient is NaN or infinite: stop; skip the update, up to nonfinite_limit in a row, then stop; or
    # rewind to the newest checkpoint and go on past the batches since, up to nonfinite_limit times, then stop.
    config.train.nonfinite = "stop"
    config.train.nonfinite_limit = 3
    config.train.wandb_project = ""  # of Weights & Biases, where wandb is installed; empty: it is not used

    config.mesh = ConfigDict()
    # Devices that share one copy of the parameters, their EMA, the gradients and the optimiser's state (FSDP, ZeRO-3);
    # divides train.num_devices. 1: a copy on every device; 0: one copy over all. The batch is spread over all anyway.
    config.mesh.fsdp = 1

    config.sample = ConfigDict()
    # ancestral, ddim, euler, euler_ancestral, heun, dpmpp_1, dpmpp_2m, dpmpp_3m, dpmpp_3m_full (of order 3 in
    # truth), dpmpp_sde, dpmpp_2m_sde, plms, unipc, unipc_3.
    config.sample.sampler = "ancestral"
    config.sample.num_sampler_steps = 0  # steps visited, one network call each (heun: two); 0: all T
    # Of the steps that are visited: uniform, quadratic, ddim_quadratic, leading, trailing, log_snr, karras.
    config.sample.spacing = "uniform"
    # Instead of both: "250", "10,15,20" (steps a section) or "ddim50" as in the improved-DDPM code, or
    # "t=999,500,0", the steps themselves.
    config.sample.respacing = ""
    config.sample.eta = 0.0  # of ddim: 0 is deterministic, 1 has the ancestral noise
    config.sample.churn = 0.0  # of heun: S_churn of EDM
    config.sample.churn_min = 0.0  # noise levels sqrt(1 - alpha-bar)/sqrt(alpha-bar) between which there is churn
    config.sample.churn_max = 0.0  # 0: no upper end
    config.sample.churn_noise = 1.0  # S_noise of EDM
    config.sample.clip_x_0 = True
    config.sample.dynamic_threshold = 0.0  # a quantile such as 0.995 takes the place of the clip; 0: none
    config.sample.guidance_scale = 1.0  # of classifier-free guidance, the papers' 1 + w; 1: none
    config.sample.guidance_interval = ()  # LOW,HIGH of the log SNR between which there is guidance; (): everywhere
    config.sample.guidance_rescale = 0.0  # 0..1, of the guided prediction's deviation to the conditional one's
    config.sample.negative_classes = ()  # classes to guide away from, in turn; (): from no class
    config.sample.classes = ()  # of a network with classes: which are drawn, in turn; (): all
    config.sample.batch_size = 256
    config.sample.num_grid = 64  # pictures in the grids of a training run
    # The sampler of the grids during training; the last grids use `sampler`. Young networks draw better by one with
    # noise, such as euler_ancestral.
    config.sample.preview_sampler = "euler"
    config.sample.num_preview_steps = 50

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.max_images = 2000  # of the held-out split, at each checkpoint; 0: all

    return config.lock()
