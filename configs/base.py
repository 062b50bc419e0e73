"""All config fields, each with its unit and its default value. An experiment changes some of them and adds none.

When a field is added, its default must reproduce the behaviour from before it existed: the config of an older run lacks
the field, and the run resumes with the default (`experiment.config_files.with_defaults`).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the CIFAR-10 recipe of Ho et al. 2020, with one global gradient clip and EMA warm-up."""
    config = ConfigDict()

    config.data = ConfigDict()
    # digits, mnist, fashion_mnist, cifar10, image_folder, array, or the name of a TFDS data set.
    config.data.name = "cifar10"
    # The folder of images (or the file that `python -m ddpm_jax.data pack` wrote from it), the array file, or the
    # folder with the original files of mnist, fashion_mnist and cifar10. Empty: the data come from TFDS.
    config.data.path = ""
    config.data.data_dir = ""  # folder of prepared TFDS data sets, or one such data set; empty: the default of TFDS
    config.data.split = "train"  # also slices, such as train[:95%]
    config.data.eval_split = "test"  # held out, for the eval loss; empty: no held-out images
    # Height, width in pixels; images are resized and centre-cropped to it. Arrays of other data have any number of
    # sizes, (length,) or (depth, height, width), and are read as they are.
    config.data.image_size = (32, 32)
    config.data.num_channels = 3  # 1 grey, 3 RGB; of other data the number of values at each position
    # Above 1: the images are loaded at that many times image_size, and blocks of so many pixels a side become their
    # rounded mean. For the first stage of a cascade, whose images must be the small copies of condition.factor.
    config.data.area_factor = 1
    config.data.flip = True  # mirror each image left-right with probability 1/2

    config.schedule = ConfigDict()
    # linear, quadratic, constant, warmup10, warmup50, jsd, cosine, sigmoid, geometric.
    config.schedule.name = "linear"
    config.schedule.num_steps = 1000  # T
    config.schedule.beta_start = 1e-4  # "linear" scales both ends by 1000/T
    config.schedule.beta_end = 0.02
    config.schedule.zero_terminal_snr = False  # rescale so that alpha-bar is 0 at the last step; needs x_0 or v

    config.objective = ConfigDict()
    # diffusion, or classifier: a classifier of noised images, for guidance.
    config.objective.name = "diffusion"

    config.diffusion = ConfigDict()
    config.diffusion.prediction = "eps"  # what the network predicts: eps, x_0, v, mean (the mean of x_(t-1))
    config.diffusion.loss = "simple"  # simple (mean squared error), l1, huber, vlb, rescaled_vlb (T * vlb), hybrid
    config.diffusion.huber_delta = 1.0
    config.diffusion.vlb_lambda = 0.001  # hybrid = simple + vlb_lambda * (bound summed over t, in bits/dim)
    # Variance of the reverse process p: fixed_small (beta-tilde), fixed_large (beta), learned (the network predicts the
    # log variance), learned_range (the network interpolates between the logs of beta-tilde and beta).
    config.diffusion.variance = "fixed_large"
    config.diffusion.weighting = "none"  # loss weight by t, for simple, l1 and huber: none, min_snr, p2
    config.diffusion.min_snr_gamma = 5.0
    config.diffusion.p2_gamma = 1.0
    config.diffusion.p2_k = 1.0
    # Self-conditioning: the network also sees its previous estimate of x_0. In the share of the training steps given by
    # the rate, that is the estimate of a first call at the same x_t; in the others it is 0.
    config.diffusion.self_conditioning = False
    config.diffusion.self_conditioning_rate = 0.5
    # What the network is told of the noise: t (the step), or alpha_bar (the share of the signal's variance, in [0, 1];
    # with unet.time_scale=1000 it is embedded as finely as t).
    config.diffusion.network_input = "t"
    config.diffusion.loss_region = "image"  # where the error counts: image, or hole (of condition.task inpaint, uncrop)

    config.codec = ConfigDict()
    # How the data become the x_0 that is diffused: pixels (uint8 scaled to [-1, 1]), or floats (real numbers), whose
    # fields are in the group of the same name.
    config.codec.name = "pixels"

    # x_0 = (x - mean)/scale: take the mean and the standard deviation of the data.
    config.floats = ConfigDict()
    config.floats.mean = 0.0
    config.floats.scale = 1.0

    config.condition = ConfigDict()
    # Share of the training images that are shown without their class, such as 0.1: for classifier-free guidance.
    config.condition.drop_rate = 0.0
    # What an image-conditional network is shown of an image, besides x_t: inpaint (the image with a free-form hole),
    # uncrop (with unknown sides), colourise (its grey copy), jpeg (saved at a low quality), deblur, super_resolve (a
    # small copy, enlarged again). Empty: nothing.
    config.condition.task = ""
    config.condition.hole_share = (0.1, 0.6)  # lowest and highest share of the pixels in the hole of inpaint
    config.condition.jpeg_quality = (5, 30)  # lowest and highest quality of jpeg, 1..100
    config.condition.jpeg_subsampling = "4:2:0"  # of the colours of jpeg: 4:2:0, 4:4:4
    config.condition.blur_std = (0.5, 3.0)  # lowest and highest standard deviation of deblur, in pixels
    config.condition.factor = 4  # of super_resolve: how many times larger the image is than its small copy, per side
    # How super_resolve enlarges the small copy: nearest, bilinear, bilinear_corners (corner pixels coincide), bicubic.
    config.condition.upsampling = "bilinear"
    # What super_resolve does to the small copy first: none; noise (of a random level, which the network is told); blur
    # (of half of the images, by 3x3 weights).
    config.condition.augmentation = "none"
    # Highest level of that noise: level i has the noise of the i-th step of the schedule, level 0 none; 0: T.
    config.condition.max_level = 0
    config.condition.augmentation_blur_std = (0.4, 0.6)  # of that blur: lowest and highest, in pixels of the small copy

    config.model = ConfigDict()
    # unet, or conv_net (small, one resolution: for tests and trials). Its fields are in the group of the same name.
    config.model.name = "unet"
    config.model.dtype = "float32"  # of the computation: float32, or bfloat16 (mixed precision: float32 parameters)
    config.model.num_classes = 0  # > 0: class-conditional; the class of an image is its label in the data
    # Gradient checkpointing (rematerialisation): the backward pass recomputes the inside of every block and does not
    # store it. Less memory, more time.
    config.model.remat = False

    config.unet = ConfigDict()
    config.unet.channels = 128  # width of the first level
    config.unet.channel_mults = (1, 2, 2, 2)  # widths as multiples of `channels`; each further level halves H, W
    config.unet.num_res_blocks = 2  # per level going down; one more per level going up
    config.unet.attention_resolutions = (16,)  # feature-map heights, in pixels, that have self-attention
    config.unet.dropout = 0.1
    config.unet.num_groups = 32  # of GroupNorm; must divide every width
    config.unet.norm_eps = 1e-6  # epsilon of GroupNorm; OpenAI's code uses 1e-5
    config.unet.num_heads = 1  # heads of every self-attention
    config.unet.head_channels = 0  # > 0: channels per head; num_heads is then ignored
    config.unet.scale_shift_norm = False  # t scales and shifts the second norm, instead of being added before it
    config.unet.resample_in_blocks = False  # residual blocks down- and upsample, instead of single convolutions
    config.unet.down_padding = "end"  # padding of the downsampling convolution: end (bottom and right), both
    config.unet.embedding_order = "sin_cos"  # order within the embedding of t: sin_cos, cos_sin
    config.unet.embedding_spacing = "half_minus_1"  # of the embedding's frequencies: half_minus_1, half
    config.unet.time_scale = 1.0  # the network gets t * time_scale; 1000/T is improved-diffusion's rescale_timesteps
    config.unet.conv_in_channels = 0  # output channels of the first convolution; 0: unet.channels
    # The next three are of the Efficient U-Net of Imagen. Residual blocks of each level going down, such as (2, 4, 8,
    # 8), in place of num_res_blocks; one more going up; (): num_res_blocks in all.
    config.unet.res_blocks_per_level = ()
    # Every level, the first too, begins with its downsampling and ends with its upsampling: its height, also in
    # attention_resolutions, is half of what it is otherwise.
    config.unet.downsample_first = False
    config.unet.scale_skips = False  # skip connections from the way down to the way up are multiplied by 2^-1/2

    config.conv_net = ConfigDict()
    config.conv_net.channels = 32  # width of every layer
    config.conv_net.num_layers = 4  # the receptive field is num_layers + 2 pixels in every direction

    config.optim = ConfigDict()
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 5000
    config.optim.first_step_zero = False  # update n (from 0) has the factor n/warmup_steps: the first changes nothing
    config.optim.decay_steps = 0  # > 0: cosine decay of the learning rate, to 0 at this update
    # The same two lengths as a share of train.num_steps, such as 0.08 and 1.0, so that they fit a run of any length. If
    # a share is above 0, the corresponding number of steps must be 0.
    config.optim.warmup_share = 0.0
    config.optim.decay_share = 0.0
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0  # of all parameters, by AdamW: each update subtracts learning_rate * this * params
    config.optim.grad_clip = 1.0  # largest global norm of the gradient; 0: no clipping
    config.optim.clip_replicas = 0  # > 0: split the batch into this many parts, clip each part's gradient, average
    # Decay of each exponential moving average (EMA) of the parameters, such as (0.9999, 0.999). The first average is
    # the one that is sampled and evaluated during training.
    config.optim.ema_decays = (0.9999,)
    config.optim.ema_start = "warmup"  # warmup, constant, copy_first
    # Lengths of further averages, with the profile of a power function, such as (0.05, 0.1): the standard deviation of
    # the profile as a share of the run. From two of them an average of any length can be made after the training.
    config.optim.ema_stds = ()

    config.train = ConfigDict()
    config.train.seed = 0
    config.train.num_steps = 800_000  # updates
    config.train.batch_size = 128  # images per update, over all devices
    config.train.time_sampler = "uniform"  # how t is drawn: uniform, stratified, loss_second_moment
    config.train.grad_accum_steps = 1  # gradient accumulation: number of parts of the batch, to save memory
    config.train.num_devices = 0  # 0: all
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 5000
    config.train.sample_every_steps = 10_000  # sample grids of the raw and the EMA weights; 0: only at the end
    config.train.keep_checkpoints = 2  # number of newest checkpoints to keep; the best by eval loss is kept too
    # Number of snapshots of the averages of optim.ema_stds, evenly spaced over num_steps, which are kept for ever. From
    # them the averages of other lengths are made; 0: none.
    config.train.num_ema_snapshots = 50
    # If a loss or gradient is NaN or infinite: stop; or skip the update, at most nonfinite_limit times in a row; or
    # rewind to the newest checkpoint and leave out the batches taken since, at most nonfinite_limit times. Then stop.
    config.train.nonfinite = "stop"
    config.train.nonfinite_limit = 3
    config.train.wandb_project = ""  # Weights & Biases project, needs wandb installed; empty: not used

    config.mesh = ConfigDict()
    # Fully sharded data parallel (FSDP, ZeRO-3): number of devices that share one copy of the parameters, EMA,
    # gradients and optimiser state; must divide train.num_devices. 1: a full copy on every device; 0: one copy over all
    # devices. The batch is always spread over all devices.
    config.mesh.fsdp = 1

    config.sample = ConfigDict()
    # ancestral, ddim, euler, euler_ancestral, heun, dpmpp_1, dpmpp_2m, dpmpp_3m, dpmpp_3m_full (third order without
    # the halved term of the authors' code), dpmpp_sde, dpmpp_2m_sde, plms, unipc, unipc_3.
    config.sample.sampler = "ancestral"
    config.sample.num_sampler_steps = 0  # sampler steps, one network call each (heun: two); 0: all T
    # Which steps are visited: uniform, dpm_uniform, quadratic, ddim_quadratic, leading, trailing, log_snr, karras.
    config.sample.spacing = "uniform"
    # Replaces both fields above: "250", "10,15,20" (steps per section) or "ddim50" as in the improved-DDPM code, or
    # "t=999,500,0", an explicit list of steps.
    config.sample.respacing = ""
    config.sample.eta = 0.0  # of ddim: 0 is deterministic, 1 adds as much noise as ancestral sampling
    config.sample.churn = 0.0  # of heun: S_churn of EDM
    config.sample.churn_min = 0.0  # lowest noise level sqrt(1 - alpha-bar)/sqrt(alpha-bar) with churn
    config.sample.churn_max = 0.0  # highest noise level with churn; 0: no upper limit
    config.sample.churn_noise = 1.0  # S_noise of EDM
    config.sample.clip_x_0 = True
    config.sample.dynamic_threshold = 0.0  # a quantile such as 0.995, replaces clip_x_0; 0: off
    config.sample.guidance_scale = 1.0  # classifier-free guidance, 1 + w in the paper; 1: no guidance
    config.sample.guidance_interval = ()  # LOW,HIGH: guidance only where the log SNR is between them; (): everywhere
    config.sample.guidance_rescale = 0.0  # 0..1: how far to restore the conditional prediction's deviation
    # Adaptive projected guidance (APG): the share that is kept of the guidance's part along x_0_hat, 0 in the paper; 1:
    # all. And the largest Euclidean norm of the difference of an image's x_0_hat; 0: no limit.
    config.sample.apg_eta = 1.0
    config.sample.apg_norm = 0.0
    config.sample.cfg_plus_plus = False  # CFG++: guidance_scale is its lambda, in 0..1; for ancestral, ddim, euler*
    # Autoguidance: the run whose network is the reference, a smaller one or one trained for less time; empty: none. Its
    # checkpoint, 0: the newest, and its weights: ema, ema/DECAY or raw.
    config.sample.autoguidance = ""
    config.sample.autoguidance_step = 0
    config.sample.autoguidance_weights = "ema"
    config.sample.negative_classes = ()  # classes to guide away from, used in turn; (): the null class
    # Folder of the run of a classifier of noised images (objective.name = "classifier"): its gradient guides samples to
    # their class; empty: none. The scale is that of the papers; 0: none.
    config.sample.classifier = ""
    config.sample.classifier_scale = 1.0
    config.sample.classes = ()  # with a class-conditional network or a classifier: classes to draw, in turn; (): all
    # Of a network with condition.augmentation=noise: the level of the noise that is added to the small copy; 0: none.
    config.sample.augmentation_level = 0
    config.sample.batch_size = 256
    config.sample.num_grid = 64  # images per grid in a training run
    # Sampler of the grids during training; the final grids use `sampler`. Networks that are not yet well trained often
    # give better images with a stochastic sampler, such as euler_ancestral.
    config.sample.preview_sampler = "euler"
    config.sample.num_preview_steps = 50

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.max_images = 2000  # held-out images used for the eval loss at each checkpoint; 0: all

    return config.lock()
