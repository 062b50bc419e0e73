"""The benchmark of recipes: what each one trains, and its table."""

import pytest

from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config


@pytest.fixture(scope="module")
def recipes(benchmark_module):
    return benchmark_module("recipes")


def test_every_recipe_is_built(recipes):
    """Each sets all that is compared, so that none depends on the experiment's own recipe."""
    for config in recipes.COMMON:
        for name in recipes.RECIPES:
            fields = recipes.fields_of(config, name)
            assert fields.keys() == recipes.COMMON[config].keys()
            overrides = [f"{field}={value}" for field, value in fields.items()]
            built = build_experiment(load_config(config, ["train.num_devices=1", *overrides]))
            assert built.batch_size == fields["train.batch_size"]


def test_a_learning_rate_is_a_factor(recipes):
    assert recipes.fields_of("digits", "v, rate x 2")["optim.learning_rate"] == pytest.approx(4e-3)
    assert recipes.fields_of("fashion_mnist", "v, rate x 0.5")["optim.learning_rate"] == pytest.approx(5e-4)


def test_the_best_comes_first_and_seeds_stand_beside_each_other(recipes):
    def numbers(distance):
        return {"classifier": distance, "pixels": 2.0, "pixels recall": 0.5, "speckled": 0.01, "salted": 0.125,
                "total variation": 0.9876}  # fmt: skip

    results = {"worse": {"ddim": [numbers(2.0), numbers(4.0)]}, "better": {"ddim": [numbers(1.0), numbers(1.5)]}}
    lines = recipes.table(results).splitlines()
    assert lines[0].startswith("| recipe | sampler | classifier | pixels | ")
    assert lines[2] == "| better | ddim | 1, 1.5 | 2, 2 | 0.50, 0.50 | 1.0%, 1.0% | 12.5%, 12.5% | 0.99, 0.99 |"
    assert lines[3].startswith("| worse | ddim | 2, 4 |")


def test_one_recipe_of_two_names_is_trained_once(recipes):
    assert recipes.distinct("digits", ["eps", "v", "v, batch 64", "v, batch 32"]) == ["eps", "v", "v, batch 32"]
    assert recipes.distinct("fashion_mnist", ["v", "v, batch 32"]) == ["v"]


def test_a_folder_of_other_settings_is_refused(recipes, tmp_path):
    recipes.check_settings(tmp_path / "x", {"num_samples": 3})
    recipes.check_settings(tmp_path / "x", {"num_samples": 3})
    with pytest.raises(SystemExit, match="was made with other settings"):
        recipes.check_settings(tmp_path / "x", {"num_samples": 4})


@pytest.mark.parametrize(
    "flag,message",
    [
        ("--recipes=w", "--recipes must be from v; eps; "),
        ("--samplers=ddim", "--samplers must be from ddim, eta 1, 50 calls; "),
        ("--num_images=10", "--num_images must be 0 or at least 128, the largest batch; got 10"),
        ("--seeds=a", "argument --seeds: invalid int value: 'a'"),
        ("--steps=3", "unknown flag --steps=3"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(recipes, tmp_path, flag, message, capsys):
    with pytest.raises(SystemExit) as end:
        recipes.main(["--config=digits", f"--out={tmp_path}", flag])
    assert end.value.code == 2 and message in capsys.readouterr().err
