"""Each loss at equal time on the digits: python benchmarks/losses.py --save (how: see equal_time.py)"""

import equal_time

ADVERSARIAL = (
    "loss_config.adversarial.weight=0.002",
    "loss_config.adversarial.hidden_channels=16",
    "loss_config.adversarial.update_every=2",
)
PERCEPTUAL = (
    "loss_config.perceptual.weight=0.02",
    "loss_config.perceptual.backbone=digits",
    "loss_config.perceptual.image_size=8",
)
HYBRID = ("loss_config.loss_type=hybrid", "loss_config.l1_weight=0.1", "loss_config.huber_weight=0.1")
LEARNED = ("model_config.variance_type=learned_range",)

CHOICES = {
    "terms": {
        "mse": (),
        "l1": ("loss_config.loss_type=l1",),
        "huber": ("loss_config.loss_type=huber", "loss_config.huber_weight=2"),
        "hybrid": HYBRID,
    },
    "weight": {
        f"{formula}, {predicted}": (f"model_config.prediction_type={predicted}", *equal_time.weighted(formula))
        for formula in ("snr", "linear", "inverse", "min_snr", "p2")
        for predicted in (("epsilon", "v_prediction") if formula in ("min_snr", "p2") else ("epsilon",))
    },
    "further terms": {
        "learned variance": LEARNED,
        "perceptual": PERCEPTUAL,
        "adversarial": ADVERSARIAL,
        "all (digits_hybrid.yaml)": (*HYBRID, *LEARNED, *PERCEPTUAL, *ADVERSARIAL),
    },
}

if __name__ == "__main__":
    equal_time.main("losses", "Losses at equal time", CHOICES)
