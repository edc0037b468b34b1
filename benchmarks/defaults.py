"""What each default is worth at equal time: python benchmarks/defaults.py [--data FOLDER] --save (see equal_time.py)"""

import equal_time

COSINE_V = ("model_config.beta_schedule=cosine", "model_config.prediction_type=v_prediction")

CHOICES = {
    "as it stands": {"": ()},
    "initialisation": {"pytorch": ("model_config.initialization=pytorch",)},
    "average": {
        "none": ("training.ema_decay=0",),
        "0.999 without warm-up": ("training.ema_schedule=constant",),
        "0.99": ("training.ema_decay=0.99",),
        "0.9999": ("training.ema_decay=0.9999",),
    },
    "prediction": {
        "x_0": ("model_config.prediction_type=sample",),
        "v": ("model_config.prediction_type=v_prediction",),
    },
    "schedule": {
        "linear": ("model_config.beta_schedule=linear",),
        "cosine": ("model_config.beta_schedule=cosine",),
        "cosine, v": COSINE_V,
    },
    "weight": {
        "min_snr": equal_time.weighted("min_snr"),
        "min_snr, with cosine, v": (*equal_time.weighted("min_snr"), *COSINE_V),
        "p2": equal_time.weighted("p2"),
        "p2, with cosine, v": (*equal_time.weighted("p2"), *COSINE_V),
    },
    "dropout": {"0.1": ("model_config.dropout=0.1",)},
    "flips": {"on": ("dataset.horizontal_flip=true",), "off": ("dataset.horizontal_flip=false",)},
    "batch": {
        "32": ("training.batch_size=32",),
        "128": ("training.batch_size=128",),
        "128, rate 4e-3": ("training.batch_size=128", "training.learning_rate=4e-3"),
    },
    "learning rate": {
        "5e-4": ("training.learning_rate=5e-4",),
        "1e-3": ("training.learning_rate=1e-3",),
        "4e-3": ("training.learning_rate=4e-3",),
        "constant": ("training.scheduler.type=constant",),
    },
    "timesteps": {
        "uniform": ("loss_config.timestep_sampling=uniform",),
        "stratified": ("loss_config.timestep_sampling=stratified",),
        "importance": ("loss_config.timestep_sampling=importance",),
    },
    "variance": {
        "fixed_large": ("model_config.variance_type=fixed_large",),
        "learned": ("model_config.variance_type=learned_range",),
    },
    "optimiser": {"adam": ("training.optimizer=adam",), "adamw": ("training.optimizer=adamw",)},
}

if __name__ == "__main__":
    equal_time.main("defaults", "What each default is worth", CHOICES)
