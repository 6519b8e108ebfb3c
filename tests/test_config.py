import dataclasses
import json

import pytest

from train_dynamics.config import InputError, StudyConfig, flag_name


def test_default_is_the_published_setting():
    config = StudyConfig()
    assert config.layer_names == ("fc1", "fc2")
    assert config.iterations_per_epoch(6000) == 47  # 46 batches of 128, and one of 112
    assert config.num_iterations(6000) == 1410
    assert list(config.seeds) == list(range(10))


def test_json_round_trip():
    config = StudyConfig(hidden_sizes=(32, 16), layers=("fc1", "fc3"), num_examples=7, batch_size=2)
    assert StudyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_field_is_refused():
    with pytest.raises(InputError, match="colour"):
        StudyConfig.from_dict({**StudyConfig().to_dict(), "colour": "red"})


def test_where_the_data_lies_is_no_difference():
    assert StudyConfig(data_dir="a") == StudyConfig(data_dir="b")
    assert StudyConfig().differences(StudyConfig(data_dir="b")) == []


def test_differences_name_flag_and_both_values():
    assert StudyConfig(num_seeds=3, hidden_sizes=(4, 5)).differences(StudyConfig()) == [
        "--hidden_sizes 4,5 instead of 8",
        "--seeds 3 instead of 10",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs=0: must be a whole number, 1 or more"),
        ({"batch_size": -1}, "--batch_size=-1: must be a whole number, 1 or more"),
        ({"num_seeds": 0}, "--seeds=0: must be a whole number, 1 or more"),
        ({"num_examples": 0}, "--num_examples=0: must be a whole number, 1 or more"),
        ({"first_seed": -1}, "--first_seed=-1: must be a whole number, between 0 and 2147483647"),
        ({"first_seed": 2**31 - 1, "num_seeds": 2}, "--seeds=2: the last seed must be below 2147483648"),
        ({"hidden_sizes": (8, 0)}, "--hidden_sizes=8,0: must be positive whole numbers"),
        ({"layers": ("fc3",)}, "--layers=fc3: must be one or more of fc1, fc2"),
        ({"layers": ()}, "--layers=: must be one or more of fc1, fc2"),
        ({"layers": ("fc2", "fc2")}, "--layers=fc2,fc2: names a layer twice"),
        ({"learning_rate": 0.0}, "--learning_rate=0.0: must be a positive number"),
        ({"learning_rate": float("nan")}, "--learning_rate=nan: must be a positive number"),
        ({"label_noise": 1.0}, "--label_noise=1.0: must be at least 0 and below 1"),
        ({"label_noise": float("nan")}, "--label_noise=nan: must be at least 0 and below 1"),
        ({"momentum": 1.0}, "--momentum=1.0: must be at least 0 and below 1"),
        ({"nesterov": True}, "--nesterov=True: needs a --momentum above 0"),
        ({"pixel_std": 0.0}, "--pixel_std=0.0: must be a positive number"),
        ({"pixel_mean": float("inf")}, "--pixel_mean=inf: must be a finite number"),
        ({"gradient_layout": "sparse"}, "--gradient_layout=sparse: must be factored, dense, sketch or measures"),
        ({"dataset": ""}, "--dataset=: must name a data set"),
        ({"split": ""}, "--split=: must name a split"),
    ],
)
def test_bad_values_name_flag_value_and_what_is_right(change, message):
    with pytest.raises(InputError) as error:
        StudyConfig(**change)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_field_has_help_that_fits_its_flag():
    for field in dataclasses.fields(StudyConfig):
        assert field.metadata["help"].endswith("."), flag_name(field.name)
