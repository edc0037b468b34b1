"""Reading a configuration: the user's document verbatim, and every mistake at its place."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ddpm_hf.config import Config, load_config
from ddpm_hf.config.root import schema_text
from ddpm_hf.runtime.errors import UserError

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "configs").glob("*.yaml"))

DOCUMENT = """
training:
  num_epochs: 2000
  batch_size: 128
  learning_rate: 2e-4
  beta1: 0.9
  beta2: 0.999
  ema_decay: 0.9999
  scheduler:
    type: "cosine"
    warmup_steps: 1000
    min_lr: 1e-6
model_config:
  time_steps: 1000
  beta_start: 0.0001
  beta_end: 0.02
  image_size: 32
  image_channels: 3
  hidden_channels: 128
  num_res_blocks: 3
  dropout: 0.1
loss_config:
  loss_type: "mse"
  mse_weight: 1.0
  use_time_weighting: true
  time_weight_type: "snr"
  time_weight_params:
    min_weight: 0.1
    max_weight: 1.0
benchmark:
  n_samples: 50000
  batch_size: 128
  metrics:
    fid: true
    inception_score: true
    ssim: true
    psnr: true
  save_samples: true
  save_metrics: true
"""


@pytest.fixture
def read(tmp_path):
    """Load a configuration from text and overrides."""

    def read(text: str, *overrides: str) -> Config:
        file = tmp_path / "run.yaml"
        file.write_text(text)
        return load_config(file, overrides)

    return read


def mistakes(read, text: str, *overrides: str) -> list[str]:
    """The lines of the error, without the first and without the file's folder."""
    with pytest.raises(UserError) as caught:
        read(text, *overrides)
    return [line.strip().split("/")[-1] for line in str(caught.value).splitlines()[1:]]


def given_in(document: dict, config: dict) -> dict:
    """The part of a configuration that a document speaks of."""
    return {
        key: given_in(value, config[key]) if isinstance(value, dict) else config[key] for key, value in document.items()
    }


def test_the_users_document_loads_verbatim_with_its_values(read):
    document = yaml.safe_load(DOCUMENT.replace("2e-4", "0.0002").replace("1e-6", "0.000001"))
    assert given_in(document, read(DOCUMENT).to_dict()) == document


@pytest.mark.parametrize("section", ["training", "model_config", "loss_config", "benchmark"])
def test_each_section_of_the_document_loads_alone(read, section):
    document = yaml.safe_load(DOCUMENT.replace("2e-4", "0.0002").replace("1e-6", "0.000001"))[section]
    assert given_in(document, read(yaml.safe_dump({section: document})).to_dict()[section]) == document


@pytest.mark.parametrize("text", ["{}", "training:", "training: {}"])
def test_what_is_left_out_is_the_default(read, text):
    assert read(text).model_copy(update={"output_dir": None}) == Config()


@pytest.mark.parametrize("text", ["", "# nothing", "---\n...\n", "null"])
def test_a_file_without_options_is_refused(read, text):
    with pytest.raises(UserError, match=r"run\.yaml is empty"):
        read(text, "training.num_steps=3")


LIBRARIES = re.compile(r"[\^$\\]|Input should|valid integer|unable to|pars|literal|tuple|function|Tuple|String")
"""What pydantic's messages and names contain, and none of ours."""


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("training.batch_size=abc", "a whole number, at least 1"),
        ("training.num_steps=1.5", "a whole number, at least 1, or null"),
        ("training.learning_rate=fast", "a number, above 0"),
        ("training.compile=maybe", "'auto', or true or false"),
        ("training=3", "a section, with keys below it"),
        ("model_config.channel_multipliers=[]", "a list of one or more"),
        ("model_config.channel_multipliers=[1, x]", "a whole number, at least 1"),
        ("dataset.name=[a]", "text"),
        ("dataset.background=[1, 2]", "a list, such as [a, b, c], each a whole number, at least 0, at most 255"),
        ("dataset.value_range=[1]", "'auto', or a list, such as [a, b], each a number"),
        ("hub.repo_id=a b", "name, or a name alone"),
        ("hub.license=Apache 2", "apache-2.0"),
        ("hub.revision=a..b", "between them"),
    ],
)
def test_mistakes_are_told_in_words_of_the_configuration(read, override, allowed):
    (line,) = mistakes(read, "{}", override)
    assert allowed in line
    assert not LIBRARIES.search(line)


@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co/me/digits", "hf.co/me/digits/", "https://huggingface.co/me/digits/tree/main?x=1"],
)
def test_the_address_of_a_repository_stands_for_its_id(read, address):
    assert read("{}", f"hub.repo_id={address}").hub.repo_id == "me/digits"
    assert read("{}", f"dataset.name={address.replace('me/', 'datasets/me/')}").dataset.name == "me/digits"


def test_the_run_folder_is_named_after_the_file(read):
    assert read("{}").output_dir == str(Path("runs") / "run")
    assert read("output_dir: elsewhere").output_dir == "elsewhere"


@pytest.mark.parametrize("number", ["2e-4", "2E-4", "2.0e-4", ".2e-3", "+2e-4", "0.0002"])
def test_numbers_in_every_notation_arrive_as_numbers(read, number):
    assert read(f"training: {{learning_rate: {number}}}").training.learning_rate == pytest.approx(2e-4)


def test_overrides_win_over_the_file(read):
    config = read(DOCUMENT, "training.batch_size=64", "training.scheduler.min_lr=2e-6", "dataset.name=some/images")
    assert (config.training.batch_size, config.training.scheduler.min_lr) == (64, 2e-6)
    assert (config.dataset.name, config.training.beta2) == ("some/images", 0.999)
    assert read(DOCUMENT, "dataset.name = some/images").dataset.name == "some/images"


def test_the_resolved_configuration_loads_to_itself(read):
    config = read(DOCUMENT, "training.num_steps=7", "model_config.attention_levels=[]")
    assert read(config.to_yaml()) == config


def test_all_mistakes_are_reported_at_once_each_at_its_place(read):
    text = """training:
  learning_rat: 2e-4
  batch_size: -3
  scheduler:
    type: cosin
model_config:
  image_size: 33
  dropout: 0.2
  dropout: 1.5
  hidden_channels: 100
learning_rate: 1
"""
    assert mistakes(read, text, "training.beta1=yes", "nonsense", "training.batch=3") == [
        "run.yaml:2: training.learning_rat: unknown key (given 0.0002); did you mean learning_rate?",
        "run.yaml:3: training.batch_size: given -3; allowed: a whole number, at least 1",
        "run.yaml:5: training.scheduler.type: given 'cosin'; allowed: 'cosine', 'linear', 'step', 'exponential' or "
        "'constant'",
        "run.yaml:7: model_config.image_size: given 33; allowed: a multiple of 16, since 5 channel_multipliers "
        "halve it 4 times; or fewer channel_multipliers",
        "run.yaml:9: model_config.dropout: given twice, first in line 8; allowed: once",
        "run.yaml:9: model_config.dropout: given 1.5; allowed: a number, at least 0, below 1",
        "run.yaml:10: model_config.hidden_channels: given 100; allowed: a multiple of norm_groups (32)",
        "run.yaml:11: learning_rate: unknown key (given 1); did you mean training.learning_rate?",
        "command line: given 'nonsense'; allowed: section.key=value, e.g. training.batch_size=64",
        "command line: training.beta1: given 'yes'; allowed: a number, at least 0, below 1",
        "command line: training.batch: unknown key (given 3); did you mean batch_size?",
    ]


@pytest.mark.parametrize("option", ["model_config.hidden_channels", "loss_config.adversarial.hidden_channels"])
def test_channels_that_leave_the_time_embedding_one_frequency_are_refused(read, option):
    for channels in (2, 3):
        (line,) = mistakes(read, "model_config: {norm_groups: 1}", f"{option}={channels}")
        assert line.startswith(f"command line: {option}: given {channels}")
    read("model_config: {norm_groups: 1}", f"{option}=4")


def test_a_mistake_does_not_make_others_out_of_defaults(read):
    # with the default of five levels, 20 would not be a multiple of 16
    text = "model_config:\n  image_size: 20\n  channel_multipliers: [1, x]\n  attention_levels: []\n"
    assert [line.split(":")[1] for line in mistakes(read, text)] == ["3"]


def test_conflicts_are_reported_beside_other_mistakes(read):
    """Pydantic alone checks a section's fields against each other only if no field is wrong by itself."""
    text = """
model_config: {image_size: 8, channel_multipliers: [1, 2], attention_levels: [], dropout: 2}
training: {learning_rate: 1e-7, scheduler: {type: cosin}}
loss_config: {adversarial: {weight: 0.1, num_levels: 4}, perceptual: {weight: -1}}
"""
    paths = [line.split(":")[2].strip() for line in mistakes(read, text)]
    assert sorted(paths) == [
        "loss_config.adversarial.num_levels",
        "loss_config.perceptual.weight",
        "model_config.dropout",
        "training.scheduler.min_lr",
        "training.scheduler.type",
    ]


def test_a_value_that_is_removed_makes_no_conflict_with_its_default(read):
    assert len(mistakes(read, "model_config: {beta_start: 0.5, beta_end: x}")) == 1
    text = "model_config: {image_size: x}\nloss_config: {adversarial: {weight: 1, num_levels: 6}}"
    assert len(mistakes(read, text)) == 1


def test_an_empty_subsection_is_its_defaults(read):
    assert read("training:\n  scheduler:\n").training == Config().training


@pytest.mark.parametrize(
    "text",
    [
        "model_config: {norm_groups: 48}",
        "model_config: {attention_levels: [5]}",
        "model_config: {attention_head_dim: 257}",
        "model_config: {attention_head_dim: 48, attention_levels: [5], mid_block_type: null}",
        "model_config: {mid_block_type: UNetMidBlock2DCrossAttn}",
        "model_config: {beta_end: 0.00001}",
        "model_config: {channel_multipliers: []}",
        "training: {batch_size: 10, gradient_accumulation_steps: 3}",
        "training: {learning_rate: 1e-7}",
        "training: {ema_decay: 1.0}",
        "training: {num_steps: 1.5}",
        "training: {learning_rate: .nan}",
        "training: {max_grad_norm: .inf}",
        "training: 3",
        "seed: -1",
        "hub: {repo_id: 'a b'}",
        "hub: {wait_at_end: true}",
    ],
)
def test_what_cannot_work_is_one_mistake(read, text):
    assert len(mistakes(read, text)) == 1


@pytest.mark.parametrize(
    "text",
    ["a: [1", "- 1", "just words", "a: !!python/object/apply:os.system ['touch hacked']", "a: &a [*a]", "\x00"],
)
def test_what_is_no_configuration_is_refused_and_runs_nothing(read, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run\.yaml"):
        read(text)
    assert not (tmp_path / "hacked").exists()


def test_a_missing_file_is_told_with_its_neighbours(tmp_path):
    (tmp_path / "there.yaml").touch()
    with pytest.raises(UserError, match=r"nope\.yaml: No such file.*there\.yaml"):
        load_config(tmp_path / "nope.yaml")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(recipe):
    assert load_config(recipe).output_dir == str(Path("runs") / recipe.stem)


def test_the_default_network_has_the_five_levels_of_the_document():
    model = load_config(REPOSITORY / "configs" / "ddpm_config.yaml").model
    assert model.block_out_channels == (128, 128, 256, 256, 512)
    assert model.attention_levels == (3,)
    assert model == Config().model


def test_the_recipe_of_the_paper_is_the_paper_s_whatever_the_defaults_are():
    """DDPM, section 4 and appendix B."""
    config = load_config(REPOSITORY / "configs" / "cifar10.yaml")
    model, training, loss = config.model, config.training, config.loss
    assert (model.time_steps, model.beta_schedule, model.beta_start, model.beta_end) == (1000, "linear", 1e-4, 0.02)
    assert (model.prediction_type, model.variance_type, model.dropout) == ("epsilon", "fixed_large", 0.1)
    assert (training.optimizer, training.learning_rate, training.batch_size) == ("adam", 2e-4, 128)
    assert (training.num_steps, training.max_grad_norm, training.ema_decay) == (800_000, 1, 0.9999)
    assert (loss.loss_type, loss.use_time_weighting, loss.timestep_sampling) == ("mse", False, "uniform")
    assert config.dataset.horizontal_flip


def test_the_schema_for_editors_is_current():
    assert (REPOSITORY / "configs" / "schema.json").read_text() == schema_text(), "run: make schema"


def test_every_field_is_documented():
    def undocumented(schema: dict, path: str = "") -> list[str]:
        here = [
            f"{path}.{name}"
            for name, field in schema.get("properties", {}).items()
            if "description" not in field and "$ref" not in field
        ]
        return here + [each for name, part in schema.get("$defs", {}).items() for each in undocumented(part, name)]

    assert undocumented(Config.model_json_schema()) == []


def test_reading_a_configuration_loads_no_torch():
    code = "import sys, ddpm_hf.config; assert not {'torch', 'diffusers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_and_off_are_words_as_in_yaml_1_2(read):
    assert read("training:\n  mixed_precision: no\n").training.mixed_precision == "no"
    assert read("{}", "training.mixed_precision=no").training.mixed_precision == "no"
    assert read("{}", "training.compile=true").training.compile is True
    assert mistakes(read, "{}", "training.beta1=true") == [
        "command line: training.beta1: given true; allowed: a number, at least 0, below 1"
    ]


def test_sections_that_do_not_fit_each_other_are_told_at_their_lines(read):
    text = """
model_config: {image_size: 8, channel_multipliers: [1, 2], attention_levels: [], variance_type: learned_range}
loss_config:
  vlb_weight: 0
  adversarial:
    weight: 0.1
    num_levels: 4
"""
    found = mistakes(read, text)
    assert found == [
        "run.yaml:4: loss_config.vlb_weight: given 0.0; allowed: above 0, since nothing else trains the variance of "
        "variance_type learned_range",
        "run.yaml:7: loss_config.adversarial.num_levels: given 4; allowed: 1 to 3, the times that an image_size of 8 "
        "can be halved",
    ]


def test_the_losses_mistakes_come_all_at_once(read):
    text = """
loss_config:
  huber_delta: 0
  time_weight_params: {gamma: -1}
  perceptual: {weight: 1}
  adversarial: {weight: -1, loss: wasserstein}
"""
    assert len(mistakes(read, text)) == 5


def test_the_best_checkpoint_needs_its_figure_at_every_checkpoint(read):
    text = "training: {keep_best_by: validation_loss, validate_every: 300, checkpoint_every: 1000}"
    found = mistakes(read, text, "dataset.validation_fraction=0.1")
    assert len(found) == 1
    assert "validate_every a divisor of checkpoint_every (1000)" in found[0]
    read(text.replace("300", "500"), "dataset.validation_fraction=0.1")


def test_a_key_with_escape_codes_is_shown_and_not_obeyed(tmp_path):
    (tmp_path / "file.yaml").write_text('"\\e[2Jkey\\nforged": 3\nseed: "\\e[2J"\n')
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "file.yaml")
    assert r"\x1b[2Jkey\nforged" in str(caught.value)
    assert "\x1b" not in str(caught.value)


PIECES = [
    *("&a ", "*a", "!!int ", "!!timestamp ", "!!binary ", "<<: ", "? ", "- ", "[", "]", "{", "}", ": ", "  ", "#", "%"),
    *('"', "'", "0x", "0o9", ".inf", ".nan", "~", "1e999", "-", ">", "@", "---", "=", "|", "9" * 40),
    *("\n", "\t", "\0", "\x1b", "\u2028", "\ufeff", "é", "`", "\\"),
]


def test_whatever_stands_in_a_yaml_file_it_is_refused_or_read(tmp_path):
    """Pieces of YAML, put in and taken out anywhere: never an error of another kind."""
    whole, chance = (REPOSITORY / "configs" / "digits.yaml").read_text(), random.Random(0)
    for _ in range(int(os.environ.get("DDPM_HF_MUTATIONS", "200"))):
        text = whole
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(text))
            text = text[:place] + chance.choice(PIECES) + text[place + chance.randrange(4) :]
        (tmp_path / "file.yaml").write_text(text)
        try:
            load_config(tmp_path / "file.yaml")
        except UserError as error:
            assert all(c.isprintable() or c == "\n" for c in str(error)), text
