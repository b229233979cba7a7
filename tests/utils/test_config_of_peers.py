"""The config files of the peer projects load unchanged, and mean what they mean there."""

import typing

import pytest
import torch

from paths import ROOT
from training.schedule import schedule_of
from utils.config import find_config, get_config
from utils.settings import Config

RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("base", "__init__"))
HEAD = "from easydict import EasyDict as edict\nconfig = edict()\n"

# The keys and values, in their order, of files that insightface's arcface_torch ships.
INSIGHTFACE_BASE = (
    HEAD
    + """
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.save_all_states = False
config.output = "ms1mv3_arcface_r50"
config.embedding_size = 512
config.sample_rate = 1
config.interclass_filtering_threshold = 0
config.fp16 = False
config.batch_size = 128
config.optimizer = "sgd"
config.lr = 0.1
config.momentum = 0.9
config.weight_decay = 5e-4
config.verbose = 2000
config.frequent = 10
config.dali = False
config.dali_aug = False
config.gradient_acc = 1
config.seed = 2048
config.num_workers = 2
config.wandb_key = "XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"
config.suffix_run_name = None
config.using_wandb = False
config.wandb_entity = "entity"
config.wandb_project = "project"
config.wandb_log_all = True
config.save_artifacts = False
config.wandb_resume = False
"""
)
INSIGHTFACE_VIT = (
    HEAD
    + """
config.margin_list = (1.0, 0.0, 0.4)
config.network = "vit_b_dp005_mask_005"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 0.3
config.fp16 = True
config.weight_decay = 0.1
config.batch_size = 256
config.gradient_acc = 12
config.optimizer = "adamw"
config.lr = 0.001
config.verbose = 2000
config.dali = False
config.rec = "/train_tmp/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 40
config.warmup_epoch = config.num_epoch // 10
config.val_targets = []
"""
)
INSIGHTFACE_FILTER = (
    HEAD
    + """
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r50"
config.sample_rate = 0.3
config.interclass_filtering_threshold = 0.4
config.fp16 = True
config.rec = "/train_tmp/WebFace12M_Conflict"
config.num_classes = 1017970
config.num_image = 12720066
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.val_targets = []
"""
)
INSIGHTFACE_3M = (
    HEAD
    + """
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r18"
config.embedding_size = 512
config.sample_rate = 0.1
config.fp16 = True
config.batch_size = 512
config.lr = 0.1
config.dali = False
config.rec = "synthetic"
config.num_classes = 30 * 10000 * 10
config.num_image = 1000000
config.num_epoch = 30
config.warmup_epoch = -1
config.val_targets = []
"""
)
# Of 2021, when the rate fell in steps and train.py multiplied lr by the total batch over 512.
INSIGHTFACE_STEPS = (
    HEAD
    + """
config.loss = "cosface"
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1
config.rec = "/train_tmp/glint360k"
config.num_classes = 360232
config.num_image = 17091657
config.num_epoch = 20
config.warmup_epoch = -1
config.decay_epoch = [8, 12, 15, 18]
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
"""
)
# A file of the MHE authors' FaceRecognition.
MHE = (
    HEAD
    + """
config.loss = "arcface"
config.network = "r18"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 0.1
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.2
config.verbose = 2000
config.dali = False
config.score = 1
config.notes = "a note"
config.rec = "/data/CASIA-WebFace"
config.num_classes = [881, 12]
config.num_image = 452960
config.num_epoch = 25
config.warmup_epoch = 2
config.val_targets = ['lfw', 'cfp_fp', "agedb_30", "cplfw", "calfw", "cfp_ff"]
config.margin = 0.5
config.scale = 64
"""
)


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_insightface_base(recipe):
    cfg = get_config(recipe(INSIGHTFACE_BASE))
    assert cfg.margin_list == (1.0, 0.5, 0.0)
    assert cfg.head_layout() == (1, 1.0, None)
    assert cfg.precision == "float32"  # fp16 = False
    assert cfg.save_all_states is False
    assert cfg.output_dir().name == "ms1mv3_arcface_r50"


def test_insightface_partial_fc(recipe):
    cfg = get_config(recipe(INSIGHTFACE_VIT))
    assert cfg.head_layout() == (1, 0.0, 0.3)
    assert cfg.class_count() == 2059906
    assert cfg.optimizer == "adamw"
    assert cfg.total_batch(8) == 256 * 12 * 8
    assert cfg.warmup_epoch == 4
    assert cfg.amp_dtype().itemsize == 2


def test_insightface_filter(recipe):
    cfg = get_config(recipe(INSIGHTFACE_FILTER))
    assert cfg.interclass_filtering_threshold == 0.4
    assert cfg.margin_list == (1.0, 0.0, 0.4)


def test_insightface_negative_warmup(recipe):
    assert get_config(recipe(INSIGHTFACE_3M)).warmup_epoch == -1


def test_mhe(recipe):
    cfg = get_config(recipe(MHE))
    assert cfg.class_count() == 881 * 12
    assert cfg.head_layout() == (12, 0.0, None)
    assert (cfg.loss, cfg.margin, cfg.scale, cfg.margin_list) == ("arcface", 0.5, 64.0, None)
    assert cfg.without_effect() == ["score", "sample_rate"]


def test_every_key_of_the_peers_is_known():
    peers = (
        "loss margin_list network resume output embedding_size sample_rate interclass_filtering_threshold fp16 "
        "optimizer momentum weight_decay batch_size lr verbose frequent score dali dali_aug num_workers gradient_acc "
        "seed rec num_classes num_image num_epoch warmup_epoch val_targets save_all_states margin scale using_wandb "
        "wandb_key wandb_entity wandb_project wandb_resume wandb_log_all save_artifacts suffix_run_name notes"
    )
    assert set(peers.split()) <= set(typing.get_type_hints(Config))


def test_each_peer_gets_its_own_schedule(recipe):
    assert get_config(recipe(INSIGHTFACE_3M)).schedule_power() == 1  # as PolynomialLRWarmup
    assert get_config(recipe(MHE)).schedule_power() == 2  # as PolyScheduler
    assert get_config(recipe(MHE), ["lr_power=1"]).schedule_power() == 1


def test_an_older_file_of_insightface_falls_in_steps_and_scales_its_rate(recipe):
    cfg = get_config(recipe(INSIGHTFACE_STEPS))
    assert (cfg.lr_schedule, cfg.lr_steps, cfg.lr_gamma, cfg.lr_batch) == ("step", (8, 12, 15, 18), 0.1, 512)
    rate = schedule_of(cfg, 8, 1000)
    # Its lr_step_func, in epochs of 1,000 steps.
    theirs = [0.1 / 512 * 1024 * 0.1 ** sum(1000 * m <= step for m in (8, 12, 15, 18)) for step in range(20000)]
    assert [rate(step) for step in range(20000)] == pytest.approx(theirs)


def test_todays_names_go_before_an_older_one(recipe):
    cfg = get_config(recipe(INSIGHTFACE_STEPS), ["lr_schedule=cosine", "lr_batch=None"])
    assert (cfg.lr_schedule, cfg.base_lr(8), cfg.without_effect()) == ("cosine", 0.1, ["lr_steps"])
    cfg = get_config(recipe(INSIGHTFACE_STEPS), ["decay_epoch=[2]", "lr_gamma=0.5"])
    assert (cfg.lr_steps, cfg.lr_gamma) == ((2,), 0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("8", r"must be a list of rising epochs above 0, such as \[8, 14\], got 8: for another schedule"),
        ("None", "got None: for another schedule leave it as it was and set lr_schedule"),
        ("[14,8]", r"got \[14, 8\]: "),
        ("[0]", r"got \[0\]: "),
    ],
)
def test_what_is_wrong_with_an_older_setting_is_said_in_its_own_name(recipe, given, said):
    with pytest.raises(ValueError, match=f"^decay_epoch .*{said}"):
        get_config(recipe(INSIGHTFACE_STEPS), [f"decay_epoch={given}"])


def test_the_oldest_files_rate_as_a_function_is_said_in_todays_settings(recipe):
    text = INSIGHTFACE_STEPS.replace("config.decay_epoch = [8, 12, 15, 18]", "config.lr_func = lambda epoch: 0.1")
    with pytest.raises(ValueError, match=r"^lr_func, in insightface's oldest files .*lr_schedule = 'step'") as caught:
        get_config(recipe(text))
    assert "lr_end" not in str(caught.value)
    today = ["lr_schedule=step", "lr_steps=[19,27]", "lr_batch=512", "num_epoch=34", "warmup_epoch=0"]
    cfg = get_config(recipe(text.replace("lr_func = lambda epoch: 0.1", "momentum = 0.9")), today)
    theirs = [0.1 ** len([m for m in (20, 28) if m - 1 <= epoch]) for epoch in range(34)]
    rate = schedule_of(cfg, 1, 10)
    assert [rate(10 * epoch) / rate(0) for epoch in range(34)] == pytest.approx(theirs)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_say_whose_schedule_they_follow(name):
    after_insightface = name in ("wf42m_vit_b_mhs", "glint360k_r100_mhs")
    power, whose = (1, "insightface's schedule") if after_insightface else (2, "the schedule of the MHE authors")
    assert get_config(name).lr_power == power
    assert f"config.lr_power = {power}  # {whose}" in find_config(name).read_text()


def test_insightface_sample_rate_0(recipe):
    cfg = get_config(recipe(INSIGHTFACE_FILTER.replace("sample_rate = 0.3", "sample_rate = 0")))
    assert cfg.head_layout() == (1, 0.0, 0.0)


def test_the_classifier_computes_in_float32_as_insightface_does(recipe):
    cfg = get_config(recipe(INSIGHTFACE_FILTER))
    assert (cfg.amp_dtype(), cfg.classifier_dtype()) == (torch.float16, None)
    assert get_config(recipe(INSIGHTFACE_FILTER), ["classifier_amp=True"]).classifier_dtype() == torch.float16


def test_the_recipe_of_vit_b_differs_from_insightfaces_in_its_classifier_and_precision(tmp_path):
    (tmp_path / "theirs.py").write_text(INSIGHTFACE_VIT)
    theirs, ours = get_config(tmp_path / "theirs.py").as_dict(), get_config("wf42m_vit_b_mhs").as_dict()
    different = {key for key in theirs if theirs[key] != ours[key]}
    assert different == {
        "name",
        "loss",
        "margin",
        "margin_list",
        "head_size",
        "sample_rate",
        "lr_power",
        "val_targets",
        "precision",  # "auto", which is bf16 on a GPU that has it
        "fp16",
        "bf16",
    }
