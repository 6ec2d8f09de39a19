"""Members of log ratios and low-rank pairs: rates of their own."""

from skorch.callbacks import Callback

from tests.toys import (
    TinyMLP,
    toy_classifier,
)


def test__hybrid__lora_lr__rate_of_the_pairs_alone(images):
    rates = []

    class Rates(Callback):
        def on_train_begin(self, net, **kwargs):
            rates.extend((group["lr"], len(group["params"])) for group in net.optimizer_.param_groups)

    toy_classifier(
        TinyMLP(),
        ensemble="sve+lora",
        ensemble_params={"lora_lr": 3e-3},
        member_lr=0.2,
        head_lr=0.1,
        warmup=0.0,
        callbacks=[Rates()],
    ).fit(*images)
    assert sorted(rates) == [(3e-3, 8), (0.1, 4), (0.2, 4)]  # two members, two layers
