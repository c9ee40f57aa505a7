"""Every mistake on eat-run's command line: the exact line that is printed, exit code 2, and nothing started."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import eat_runner
from eat_runner.cli import run

MODELS = "entry_point, resnet18, resnet34, resnet50, timm, torchvision, vgg11, vgg13, vgg16, vgg19"
COMBINED = (
    "demo, gtsrb_slim, methods/cifar10, methods/gtsrb, paper/ablation_cifar10, paper/ablation_gtsrb, "
    "paper/celeba_resnet18, paper/celeba_vgg16, paper/chip_cifar10_vgg16, paper/chip_gtsrb_resnet18, "
    "paper/choices, paper/choices_augmentation, paper/choices_vgg16, "
    "paper/cifar10_resnet18, paper/cifar10_vgg16, paper/gtsrb_resnet18, paper/gtsrb_vgg16, paths/gtsrb"
)
ROOT = (
    "lambda, seed, name, results_dir, data_dir, download, init, budget, budget_uj, device, threads, selection, "
    "on_error, plan, meter, dataset, model, penalty, schedule, hardware, trainer, pruning, bits, thresholds, compact, "
    "path, teacher, loggers, recipe, experiment"
)
QUOTES = "write key=value, and put quotes around values with special characters"
GROUP_EMPTY = "a group is chosen by the name of a file, such as model=resnet18, and cannot be empty"
FINITE_0 = "is out of range: it must be a finite number >= 0"
ABOVE_0 = "is out of range: it must be a finite number > 0"

LAMBDA_TOO = (
    "beside a method lambda is 0 where nobody gives it, and then penalty and schedule mean nothing: write "
    "lambda=VALUE, too, or leave them out"
)
# command line -> what stands behind "eat-run: error: "
BAD: dict[str, str] = {
    # names
    "lamda=1": "lamda is no key: did you mean lambda?",
    "lambda_=1": "lambda_ is no key: did you mean lambda?",
    "sead=1": "sead is no key: did you mean seed?",
    "epochs=3": "epochs is no key: did you mean trainer.epochs?",
    "nam=x": "nam is no key: did you mean name?",
    "batch=50": "batch is no key: did you mean meter.batch_size?",
    "widht=3": "widht is no key: did you mean model.width?",
    "model.widht=3": "model.widht is no key: did you mean model.width?",
    "trainer.bogus=1": "trainer.bogus is no key: choose among trainer.epochs, trainer.batch_size, trainer.lr, "
    "trainer.momentum, trainer.weight_decay, trainer.lr_schedule, trainer.lr_gamma, trainer.precision, "
    "trainer.channels_last, trainer.compile, trainer.evaluate_every, trainer.checkpoint_every, trainer.keep_checkpoint",
    "zzz=1": f"zzz is no key: choose among {ROOT}",
    "zzz.a.b=1": f"zzz.a.b is no key: choose among {ROOT}",
    "penalty/sigma=1": "penalty/sigma is no key: did you mean penalty.sigma?",
    "hydra.nope=1": "hydra.nope is no key of Hydra's: see eat-run --hydra-help",
    "-m lambda=0,1 lamda=2": "lamda is no key: did you mean lambda?",
    # choices of a group
    "model=zzz": f"model=zzz is unknown: choose one of {MODELS}",
    "model=resnet19": f"model=resnet19 is unknown: did you mean model=resnet18? All: {MODELS}",
    "model=": f"model= is unknown: choose one of {MODELS}",
    "-m model=resnet18,zzz": f"model=zzz is unknown: choose one of {MODELS}",
    "trainer=fats": "trainer=fats is unknown: did you mean trainer=fast? All: fast, paper",
    "penalty=l2": "penalty=l2 is unknown: choose one of hoyer, l0, l1, none, transformed_l1",
    "schedule=warm": "schedule=warm is unknown: choose one of constant, cosine, exponential, linear, step",
    "trainer=null": GROUP_EMPTY,
    "dataset=5": GROUP_EMPTY,
    "=5": GROUP_EMPTY,
    "dataset={a:1}": "dataset is a group of keys: change one of them, dataset.KEY=VALUE",
    "meter=null": "meter is missing: every key and group needs a value, so leave out what takes it away",
    "model@x=resnet18": "model@x is no key: groups have one place here, so write model=NAME",
    # types
    "lambda=abc": "lambda=abc is of the wrong type: lambda is a number",
    "lambda=": "lambda= is of the wrong type: lambda is a number",
    "lambda=[1,2]": "lambda=[1,2] is of the wrong type: lambda is a number",
    "lambda={a:1}": "lambda={a:1} is of the wrong type: lambda is a number",
    "-m lambda=0,abc": "lambda=abc is of the wrong type: lambda is a number",
    "lambda=???": "lambda is missing: every key and group needs a value, so leave out what takes it away",
    "seed=1.5": "seed=1.5 is of the wrong type: seed is a whole number",
    "seed=true": "seed=true is of the wrong type: seed is a whole number",
    "-m seed=1,b": "seed=b is of the wrong type: seed is a whole number",
    "download=maybe": "download=maybe is of the wrong type: download is true or false",
    "init=[1]": "init=[1] is of the wrong type: init is text",
    "trainer.epochs=ten": "trainer.epochs=ten is of the wrong type: trainer.epochs is a whole number",
    "model.width=null": "model.width=null is of the wrong type: model.width is a whole number",
    "meter.batch_size=x": "meter.batch_size=x is of the wrong type: meter.batch_size is a whole number",
    "hardware.multiply_pj=much": "hardware.multiply_pj=much is of the wrong type: hardware.multiply_pj is a number",
    # ranges
    "lambda=-1": f"lambda=-1 {FINITE_0}",
    "lambda=nan": f"lambda=nan {FINITE_0}",
    "lambda=inf": f"lambda=inf {FINITE_0}",
    "lambda=1e400": f"lambda=inf {FINITE_0}",
    "-m lambda=0,1,-1": f"lambda=-1 {FINITE_0}",
    "-m lambda=0,nan": f"lambda=nan {FINITE_0}",
    "-m lambda=inf,0": f"lambda=inf {FINITE_0}",
    "seed=-1": "seed=-1 is out of range: it must be between 0 and 2.14748e+09",
    "threads=0": "threads=0 is out of range: it must be between 1 and 1024",
    "penalty.sigma=0": f"penalty.sigma=0 {ABOVE_0}",
    "penalty.sigma=nan": f"penalty.sigma=nan {ABOVE_0}",
    "-m penalty.sigma=1e-4,0": f"penalty.sigma=0 {ABOVE_0}",
    "teacher=parent": "teacher=parent is the network that a training starts from: give one, init=RUN, or a path",
    "teacher=parent init=run trainer.epochs=0": "teacher=parent has nobody to teach with trainer.epochs=0: "
    "leave it out",
    "teacher=parent init=run teacher.temperature=0": f"teacher.temperature=0 {ABOVE_0}",
    "teacher=parent init=run teacher.weight=-1": f"teacher.weight=-1 {ABOVE_0}",
    "penalty.sample=0": f"penalty.sample=0 {ABOVE_0}",
    "penalty=l1 penalty.sample=1.5": "penalty.sample=1.5 is out of range: it must be between 0 and 1",
    "penalty=hoyer lambda=1 penalty.sample=0.5": "penalty.sample=0.5: penalty=hoyer is no sum over the images, so none "
    "can stand for others: leave it out",
    "trainer.epochs=-3": "trainer.epochs=-3 is out of range: it must be between 0 and 100000",
    "trainer.batch_size=0": "trainer.batch_size=0 is out of range: it must be between 1 and 1e+06",
    "trainer.lr=0": f"trainer.lr=0 {ABOVE_0}",
    "trainer.momentum=1.5": "trainer.momentum=1.5 is out of range: it must be between 0 and 1",
    "trainer.momentum=nan": "trainer.momentum=nan is out of range: it must be between 0 and 1",
    "trainer.precision=fp8": "trainer.precision=fp8 is unknown: choose one of fp32, bf16, auto",
    "-m hydra/launcher=slurm trainer.precision=auto seed=0,1": "trainer.precision=auto goes by the machine, and this "
    "sweep runs on others: write trainer.precision=bf16 or fp32",
    "dataset.validation=0.9": "dataset.validation=0.9 is out of range: it must be between 0 and 0.5",
    "model.width=0": "model.width=0 is out of range: it must be between 1 and 1024",
    "model.stem=5x5": "model.stem=5x5 is unknown: choose one of auto, 3x3, 7x7",
    "penalty.scope=all": "penalty.scope=all is unknown: choose one of leaf_modules, activations",
    "meter.batch_size=0": "meter.batch_size=0 is out of range: it must be between 1 and 1e+06",
    "hardware.multiply_pj=-1": f"hardware.multiply_pj=-1 {FINITE_0}",
    "hardware=fused_45nm hardware.mac_pj_by_bits=4": "hardware.mac_pj_by_bits=4 is of the wrong type: "
    "hardware.mac_pj_by_bits is a mapping",
    "hardware=fused_45nm hardware.mac_pj_by_bits={2:{multiply_pj:1}}": "hardware.mac_pj_by_bits.2 is not there yet: "
    "write +hardware.mac_pj_by_bits=... to add it",
    "hardware=fused_45nm +hardware.mac_pj_by_bits={2:{multiply_pj:1}}": "Structured config of type `OperationPrices` "
    "has missing mandatory value: accumulate_pj",
    "hardware=fused_45nm hardware.mac_pj_by_bits={4:{multiply_pj:-1}}": "hardware.mac_pj_by_bits.4.multiply_pj=-1 "
    f"{FINITE_0}",
    "hardware=fused_45nm hardware.mac_pj_by_bits={4:{multiply_pj:much}}": "hardware.mac_pj_by_bits={4:{multiply_pj:"
    "much}} is of the wrong type: hardware.mac_pj_by_bits is a mapping",
    "hardware=fused_45nm hardware.bits=4": "hardware.mac_pj_by_bits.4: 4 bits is the hardware's own width: change "
    "hardware.multiply_pj, hardware.accumulate_pj, hardware.add_pj instead",
    "hardware=fused_45nm hardware.weight_buffer_bits=-1": f"hardware.weight_buffer_bits=-1 {FINITE_0}",
    "hardware=fused_45nm hardware.weight_buffer_bits=large": "hardware.weight_buffer_bits=large is of the wrong type: "
    "hardware.weight_buffer_bits is a whole number",
    "hardware=fused_45nm hardware.run_bits=[]": "hardware.run_bits=[] must be a list of widths, each of them once: [5]",
    "hardware=fused_45nm hardware.run_bits=[5,5]": "hardware.run_bits=[5, 5] must be a list of widths, each of them "
    "once: [5]",
    "hardware=fused_45nm hardware.run_bits=[5,33]": "hardware.run_bits=33 is out of range: it must be between 1 and 32",
    "hardware=fused_45nm hardware.run_bits=8": "hardware.run_bits=8 is of the wrong type: hardware.run_bits is a list",
    "hardware=fused_45nm hardware.run_bits=[five]": "hardware.run_bits=[five] is of the wrong type: "
    "hardware.run_bits is a list",
    "hardware.run_bits=[5]": "hardware.run_bits is no key of the hardware that is chosen: leave it out, or choose "
    "another hardware",
    "hardware.ranges={dram_pj_per_value:[2000,2600]}": "hardware.dram_pj_per_value=1950 is not in its range, "
    "hardware.ranges.dram_pj_per_value=[2000,2600]: change both",
    "hardware.dram_pj_per_value=3000": "hardware.dram_pj_per_value=3000 is not in its range, "
    "hardware.ranges.dram_pj_per_value=[1300,2600]: change both",
    "hardware.ranges={dram_pj_per_value:[2600,1300]}": "hardware.ranges.dram_pj_per_value: high=1300 is out of range: "
    "it must be a finite number >= 2600",
    "hardware.ranges={dram_pj_per_value:[-1,2600]}": f"hardware.ranges.dram_pj_per_value: low=-1 {FINITE_0}",
    "hardware.ranges={dram_pj_per_value:2600}": "hardware.ranges.dram_pj_per_value=2600 must be two prices, [low, "
    "high]",
    "hardware.ranges={dram_pj_per_value:[1300]}": "hardware.ranges.dram_pj_per_value=[1300] must be two prices, [low, "
    "high]",
    "hardware.ranges={multiply_pj:[1,4]}": "hardware.ranges.multiply_pj is not there yet: write "
    "+hardware.ranges=... to add it",
    "+hardware.ranges={batch_size:[1,4]}": "hardware.ranges=batch_size is unknown: choose one of dram_pj_per_value, "
    "multiply_pj",
    "hardware.ranges=[1,2]": "hardware.ranges=[1,2] is of the wrong type: hardware.ranges is a mapping",
    "hardware=dense_7nm_int8 penalty.weighting=energy": "penalty.weighting=energy weights by what a zero saves, and "
    "hardware=dense_7nm_int8 saves nothing for zeros: choose another weighting or other hardware",
    "hardware.source=3": "hardware.source=3 is of the wrong type: hardware.source is a mapping",
    "device=gpu": "device=gpu is unknown: choose one of auto, cpu, cuda, mps",
    "selection=best": "selection=best is unknown: choose one of validation, paper",
    "on_error=retry": "on_error=retry is unknown: choose one of continue, stop",
    "dataset.name=mnist": "dataset.name=mnist is unknown: choose one of celeba, cifar10, cifar100, digits, "
    "fashion_mnist, gtsrb, image_folder",
    "model.name=resnet19": f"model.name=resnet19 is unknown: choose one of {MODELS}",
    "penalty.name=l2": "penalty.name=l2 is unknown: choose one of hoyer, l0, l1, none, transformed_l1",
    "-m schedule.name=linear,warm": "schedule.name=warm is unknown: choose one of constant, cosine, exponential, "
    "linear, step",
    "hardware.rule=fused": "hardware.rule=fused is unknown: choose one of published",
    "meter.batch_size=50": "meter.batch_size=50 does not fit hardware=published, which prices counts made with 100: "
    "leave meter.batch_size as it is or choose other hardware",
    "meter.threshold=0.5": "meter.threshold=0.5 does not fit hardware=published, which prices counts made with "
    "1.17549e-38: leave meter.threshold as it is or choose other hardware",
    "name=a/b": "name='a/b' is no folder name: use letters, digits, '-', '_' and '.'",
    "name=..": "name='..' is no folder name: use letters, digits, '-', '_' and '.'",
    # grammar
    "lambda": f"cannot read 'lambda': {QUOTES}",
    "lambda=[1": f"cannot read 'lambda=[1': {QUOTES}",
    "model=resnet18=3": f"cannot read 'model=resnet18=3': {QUOTES}",
    "lambda=1,2": "lambda=1,2 has several values: add -m to sweep over them",
    "lambda=range(3)": "lambda=range(3) has several values: add -m to sweep over them",
    "-m lambda=interval(0,1)": "interval(...) cannot be swept: list the values, key=a,b,c, or write range(...)",
    "pruning=magnitude pruning.density=0": "pruning.density=0 is out of range: it must be a finite number > 0",
    "pruning=magnitude pruning.density=1.5": "pruning.density=1.5 is out of range: it must be between 0 and 1",
    "pruning=magnitude pruning.begin=0.7": "pruning.begin=0.7 must be smaller than pruning.end=0.7",
    "pruning=magnitude pruning.every_steps=0": "pruning.every_steps=0 is out of range: it must be a finite number > 0",
    "pruning=magnitude pruning.ranking=local": "pruning.ranking=local is unknown: choose one of global, uniform, erk",
    "pruning=energy pruning.ranking=erk": "pruning.ranking=erk is for pruning=magnitude: prices rank all weights "
    "together",
    "pruning=magnitude pruning.structure=row": "pruning.structure=row is unknown: choose one of element, channel, 2:4",
    "pruning=energy pruning.channels=0": "pruning.channels=0 is out of range: it must be a finite number > 0",
    "pruning=energy pruning.channels=2": "pruning.channels=2 is out of range: it must be between 0 and 1",
    "pruning=energy pruning.channels=0.5 pruning.structure=channel": "pruning.channels=0.5 is for "
    "pruning.structure=element: leave one of them out",
    "pruning=magnitude pruning.structure=2:4 pruning.density=0.2": "pruning.density=0.2 does not fit "
    "pruning.structure=2:4, which leaves 0.5",
    "pruning=energy pruning.structure=2:4": "pruning=energy does not fit pruning.structure=2:4: two weights of four "
    "stay, whatever they cost: choose pruning=magnitude",
    "pruning=magnitude pruning.structure=2:4 pruning.ranking=erk": "pruning.ranking=erk does not fit "
    "pruning.structure=2:4: leave it out",
    "schedule.target=0": "schedule.target=0 is out of range: it must be a finite number > 0",
    "schedule.target=1.5": "schedule.target=1.5 is out of range: it must be between 0 and 1",
    "schedule.target=few": "schedule.target=few is of the wrong type: schedule.target is a number",
    "schedule.target=0.3 schedule.rate=0": "schedule.rate=0 is out of range: it must be a finite number > 0",
    "schedule.target=0.3 schedule.cap=-1": "schedule.cap=-1 is out of range: it must be a finite number > 0",
    "schedule.target=0.3 penalty=l1": "schedule.target=0.3 is a density, and penalty=l1 counts none: use penalty=l0",
    "hardware=gone.yaml": "gone.yaml: no hardware file there (No such file or directory)",
    "-m hardware=fused_45nm,gone.yml": "gone.yml: no hardware file there (No such file or directory)",
    "budget=0 pruning=energy": "budget=0 is out of range: it must be a finite number > 0",
    "budget=-1 pruning=energy": "budget=-1 is out of range: it must be a finite number > 0",
    "budget=nan pruning=energy": "budget=nan is out of range: it must be a finite number > 0",
    "budget=20 pruning=energy": "budget=20 is out of range: it must be between 0 and 1",
    "budget=half pruning=energy": "budget=half is of the wrong type: budget is a number",
    "budget_uj=0 pruning=energy": "budget_uj=0 is out of range: it must be a finite number > 0",
    "budget=0.2 budget_uj=3 pruning=energy": "budget=0.2 and budget_uj=3 say the same: leave one out",
    "budget_uj=3 pruning=energy hardware=eyeriss_65nm": "budget_uj=3 needs prices in joules, those of "
    "hardware=eyeriss_65nm are relative: use budget, a share of the dense energy",
    "path=lambda": "path=lambda has no strengths: write lambda=0.5,1,2 in a sweep (-m)",
    "-m path=lambda lambda=0": "path=lambda has no strengths: write lambda=0.5,1,2 in a sweep (-m)",
    "-m path=lambda lambda=0,-1": f"lambda=-1 {FINITE_0}",
    "-m path=lambda lambda=0,a": "path.over=[0,a] is of the wrong type: path.over is a list",
    "-m path=lambda,density": "path=lambda,density: paths in several directions need a command each",
    "-m path=lambda lambda=1,2 path.epochs=0": "path.epochs=0 is out of range: it must be between 1 and 100000",
    "-m path=lambda lambda=1,2 path.lr=0": f"path.lr=0 {ABOVE_0}",
    "-m path=lambda lambda=1,2 penalty=none": "path=lambda with penalty=none has nothing that grows: choose a penalty",
    "-m path=lambda lambda=1,2 bits=8 hardware=fused_45nm_int8": "path=lambda trains each network further, and bits "
    "changes it for good: do that to the finished runs, init=RUN trainer.epochs=0 bits=NAME",
    "-m path=density pruning.density=0.2,0.1": "path=density needs pruning: choose pruning=magnitude or pruning=energy",
    "-m path=density pruning=magnitude pruning.density=0.2,0": f"pruning.density=0 {ABOVE_0}",
    "-m path=budget budget=0.5,0.2": "a budget needs what works towards it: choose pruning=energy, or schedule.target "
    "with a penalty",
    "path=bogus": "path=bogus is unknown: choose one of budget, default, density, lambda",
    "budget=0.2 lambda=0": "a budget needs what works towards it: choose pruning=energy, or schedule.target with a "
    "penalty",
    "budget=0.2 lambda=1": "a budget needs what works towards it: choose pruning=energy, or schedule.target with a "
    "penalty",
    "budget=0.2 bits=8 hardware=fused_45nm_int8": "a budget needs what works towards it: choose pruning=energy, or "
    "schedule.target with a penalty",
    "schedule=linear schedule.target=0.3": "schedule=linear and schedule.target=0.3 both move lambda: use "
    "schedule=constant",
    "pruning=energy schedule.target=0.3": LAMBDA_TOO,
    "pruning=energy penalty=l1": LAMBDA_TOO,
    "pruning=energy penalty.weighting=energy": LAMBDA_TOO,
    "budget=0.2 pruning=energy pruning.density=0.1": "pruning.density=0.1 and a budget both say how much is left: "
    "leave one of them out",
    "budget=0.2 pruning=magnitude pruning.structure=2:4": "a budget does not fit pruning.structure=2:4, which leaves "
    "half of the weights: use element",
    "pruning=magnitud": "pruning=magnitud is unknown: did you mean pruning=magnitude? All: energy, magnitude, none",
    "pruning.density=0.5": "pruning is not chosen, so its keys mean nothing: leave them out, or write pruning=NAME",
    "thresholds.allow=-1": f"thresholds.allow=-1 {ABOVE_0}",
    "thresholds.allow=nan": f"thresholds.allow=nan {ABOVE_0}",
    "thresholds.allow=inf": f"thresholds.allow=inf {ABOVE_0}",
    "thresholds.allow=101": "thresholds.allow=101 is out of range: it must be between 0 and 100",
    "thresholds.allow=half": "thresholds.allow=half is of the wrong type: thresholds.allow is a number",
    "thresholds=fatrelu thresholds.allow=0": f"thresholds.allow=0 {ABOVE_0}",
    "thresholds=none thresholds.allow=0.5": "thresholds is not chosen, so its keys mean nothing: leave them out, or "
    "write thresholds=NAME",
    "-m thresholds.allow=0,1,200": "thresholds.allow=200 is out of range: it must be between 0 and 100",
    "thresholds=fatreul": "thresholds=fatreul is unknown: did you mean thresholds=fatrelu? All: auto, fatrelu, none",
    "thresholds.allw=1": "thresholds.allw is no key: did you mean thresholds.allow?",
    "thresholds.allow=1 hardware=fused_45nm hardware.format=dense hardware.skip=none": "thresholds save nothing on "
    "hardware=fused_45nm, where a zero costs as much as any value: choose other hardware, or leave thresholds out",
    "compact=dead": "compact=dead is unknown: choose one of exact, fired, none",
    "compact=exat": "compact=exat is unknown: did you mean compact=exact? All: exact, fired, none",
    "compact=fired compact.name=dead": "compact.name=dead is unknown: choose one of exact, fired, none",
    "compact=exact compact.allow=1": "compact.allow is no key: choose among compact.name",
    "bits=3": "bits=3 is unknown: choose one of 4, 8, none",
    "bits=int8": "bits=int8 is unknown: choose one of 4, 8, none",
    "bits=4.5": "bits=4.5 is unknown: choose one of 4, 8, none",
    "-m bits=8,16 hardware=fused_45nm_int8": "bits=16 is unknown: choose one of 4, 8, none",
    "bits=true": GROUP_EMPTY,
    "bits.begin=0.5": "bits is not chosen, so its keys mean nothing: leave them out, or write bits=NAME",
    "bits=8 hardware=fused_45nm_int8 bits.begin=2": "bits.begin=2 is out of range: it must be between 0 and 1",
    "bits=8 hardware=fused_45nm_int8 bits.begin=-0.1": "bits.begin=-0.1 is out of range: it must be between 0 and 1",
    "bits=8 hardware=fused_45nm_int8 bits.begin=0.5 compact=exact": "bits.begin=0.5 trains in integers, and "
    "compact takes no channels out of such a network: leave compact out, or bits.begin",
    "bits=4 hardware=fused_45nm_int8 bits.first_last_8=maybe": "bits.first_last_8=maybe is of the wrong type: "
    "bits.first_last_8 is true or false",
    "bits=8 hardware=fused_45nm_int8 bits.name=2": "bits.name=2 is unknown: choose one of none, 8, 4",
    "bits=8": "hardware published prices 32-bit values, not 8 bits: use hardware with rule: fused, such as "
    "hardware=fused_45nm_int8",
    "bits=4": "hardware published prices 32-bit values, not 4 bits: use hardware with rule: fused, such as "
    "hardware=fused_45nm_int8",
    "-m bits=none,8": "hardware published prices 32-bit values, not 8 bits: use hardware with rule: fused, such as "
    "hardware=fused_45nm_int8",
    "bits=8 hardware=eyeriss_65nm": "hardware eyeriss_65nm has no price for layers of 8-bit weights: choose one of 16 "
    "bits, or add hardware.mac_pj_by_bits.8",
    "loggers=[csv,comet]": "loggers=comet is unknown: choose one of csv, mlflow, progress, tensorboard, wandb",
    "loggers=tensorbord": "loggers=tensorbord is unknown: did you mean loggers=tensorboard? All: csv, mlflow, "
    "progress, tensorboard, wandb",
    "loggers=[csv,wandb] loggers.wandb.mode=of": "loggers.wandb.mode=of is unknown: choose one of offline, online",
    "loggers=[csv,wandb] loggers.wandb.project=": "loggers.wandb.project is empty: give the project a name",
    "loggers.wandb.mode=online": "loggers.wandb.mode: wandb is not among the loggers: add it to the list, "
    "loggers=[csv,progress,wandb]",
    "loggers=null": "a group is chosen by the name of a file, such as model=resnet18, and cannot be empty",
    "~loggers": "~loggers: keys cannot be removed, so leave it out",
    "penalty=none penalty.sigma=1": "penalty.sigma is no key of the penalty that is chosen: leave it out, or choose "
    "another penalty",
    "penalty.weighting=energetic": "penalty.weighting=energetic is unknown: choose one of layer_mean, elements, "
    "parameters, energy",
    "hardware.bits=8": "hardware.bits is no key of the hardware that is chosen: leave it out, or choose another "
    "hardware",
    "+seed=3": "+seed: this key is always there, so leave out the +",
    "+model=resnet34": "+model: this group is always there, so write model=resnet34",
    "+zzz=1": f"zzz is no key: choose among {ROOT}",
    "++model.widht=3": "model.widht is no key: did you mean model.width?",
    "~lambda": "~lambda: keys cannot be removed, so leave it out",
    "~model": "model is missing: every key and group needs a value, so leave out what takes it away",
    "~nope": "~nope: keys cannot be removed, so leave it out",
    "name=${nope}": "${nope}: there is no key nope",
    "data_dir=${oc.env:NO_SUCH_VARIABLE}": "${oc.env:NO_SUCH_VARIABLE}: "
    "the environment variable NO_SUCH_VARIABLE is not set",
    # sweeps
    "-m lambda=glob(*)": "lambda=glob(*) matches nothing: lambda is no group of files, so list its values, "
    "lambda=a,b,c",
    "-m model=glob(zzz*)": f"model=glob(zzz*) matches nothing: choose among {MODELS}",
    "-m lambda=range(3,1)": "lambda=range(3,1) is empty: range(START,STOP,STEP) ends before STOP",
    "-m lambda=range(0,0) seed=0,1": "lambda=range(0,0) is empty: range(START,STOP,STEP) ends before STOP",
    "-m seed=0,1 seed=2": "seed=0,1 and seed=2: seed is given twice, and only the last would count: leave one out",
    "seed=0,1 lambda=1 -m seed=2,3": "seed=0,1 and seed=2,3: seed is given twice, and only the last would count: leave "
    "one out",
    "experiment=demo experiment=gtsrb_slim": "experiment=demo and experiment=gtsrb_slim: experiment is given twice, "
    "and only the last would count: leave one out",
    "-m experiment=demo,gtsrb_slim": "experiment=demo has a sweep of its own (recipe, seed), which would not be made "
    "beside another choice: give each a command of its own",
    "-m recipe=st,magnitude_0.05 pruning.ranking=local": "recipe=st: pruning.ranking=local is unknown: "
    "choose one of global, uniform, erk",
    # files
    "experiment=zzz": f"experiment=zzz is unknown: choose one of {COMBINED}; or a file of your own: "
    "experiment=FILE.yaml",
    "experiment=methods/gtsr": "experiment=methods/gtsr is unknown: did you mean experiment=methods/gtsrb? All: "
    f"{COMBINED}; or a file of your own: experiment=FILE.yaml",
    "-m bits=glob([8])": "bits=glob([8]): put quotes around what glob looks for",
    "experiment=gone.yaml": "gone.yaml: no configuration file there (No such file or directory)",
    "model=gone.yml": "gone.yml: no configuration file there (No such file or directory)",
    "-m recipe=st,gone.yaml": "gone.yaml: no configuration file there (No such file or directory)",
    # flags
    "--config-path .": "--config-path would take the place of all of eat-run's files: add yours with --config-dir",
    "--bogus": "--bogus is no option: see eat-run --help",
    "-m --cfg job": "only one of --run, --multirun, --cfg, --info and --shell-completion can be used at a time",
    "--cfg": "argument --cfg/-c: expected one argument: see eat-run --help",
    "--resolve": "--resolve goes with --cfg: write --cfg job --resolve",
    "-sc": "--shell-completion needs a shell: write eat-run -sc install=bash (or zsh, fish)",
    "--config-name nope": "--config-name nope: there is no such file; leave the option out or add --config-dir",
    "--config-dir /no/such": "--config-dir /no/such: there is no such folder",
    "--experimental-rerun x.pickle": "--experimental-rerun is not supported, since it loads a pickle: "
    "repeat the command instead",
}

Command = Callable[[str], tuple[int, str]]


class Untouched(ModuleType):
    """Stands where experiment.py is: no mistake in this file may get that far."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"experiment.{name} was used")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs eat-run in this process, without an experiment; its exit code and what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    fake = Untouched("eat_runner.run")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(eat_runner, "experiment", fake, raising=False)

    def call(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["eat-run", *line.split()])
        with pytest.raises(SystemExit) as stopped:
            run.main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_is_one_line_and_starts_nothing(line: str, command: Command, tmp_path: Path) -> None:
    assert command(line) == (2, f"eat-run: error: {BAD[line]}\n")
    assert not list(tmp_path.iterdir())


CODE = "which no configuration may: leave it out"
JOB_LOGGING = "# @package _global_\nhydra: {job_logging: {"
EXPERIMENTS: dict[str, tuple[str, str]] = {
    # code that Hydra would run
    "callback": (
        "# @package _global_\nhydra: {callbacks: {x: {_target_: os.mkdir, path: mark}}}\n",
        f"hydra.callbacks names code (another callback than eat-run's), {CODE}",
    ),
    "no_callback": (
        "# @package _global_\nhydra: {callbacks: {before_jobs: null}}\n",
        f"hydra.callbacks names code (another callback than eat-run's), {CODE}",
    ),
    "reference": (
        "# @package _global_\nevil: {x: {_target_: os.mkdir, path: mark}}\nhydra: {callbacks: '${evil}'}\n",
        f"hydra.callbacks names code (another callback than eat-run's), {CODE}",
    ),
    "launcher": (
        "# @package _global_\nhydra: {launcher: {_target_: os.mkdir}}\n",
        f"hydra.launcher._target_ names code (os.mkdir), {CODE}",
    ),
    "sweeper": (
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: {_target_: os.mkdir, path: mark}}}}\n",
        f"hydra.sweeper.params.seed._target_ names code (os.mkdir), {CODE}",
    ),
    "factory": (
        JOB_LOGGING + "formatters: {x: {(): os.mkdir, path: mark}}}}\n",
        f"hydra.job_logging.formatters.x.() names code (os.mkdir), {CODE}",
    ),
    "handler": (
        JOB_LOGGING + "handlers: {x: {class: logging.os.mkdir, path: mark}}, root: {handlers: [x]}}}\n",
        f"hydra.job_logging.handlers.x.class names code (logging.os.mkdir), {CODE}",
    ),
    "stream": (
        JOB_LOGGING + "handlers: {x: {class: logging.StreamHandler, stream: ext://antigravity}}}}\n",
        f"hydra.job_logging.handlers.x.stream names code (ext://antigravity), {CODE}",
    ),
    "decoded": (
        JOB_LOGGING + "formatters: '${oc.decode:\"{x: {(): os.mkdir}}\"}'}}\n",
        f'hydra.job_logging.formatters names code (${{oc.decode:"{{x: {{(): os.mkdir}}}}"}}), {CODE}',
    ),
    "hydra_logging": (
        "# @package _global_\nhydra: {hydra_logging: {formatters: {x: {(): os.mkdir, path: mark}}}}\n",
        f"hydra.hydra_logging.formatters.x.() names code (os.mkdir), {CODE}",
    ),
    "environment": (
        "# @package _global_\nhydra: {job: {env_set: {CXX: ./mine}}}\n",
        f"hydra.job.env_set.CXX names code (./mine), {CODE}",
    ),
    # slips
    "typo": ("# @package _global_\nlamda: 3\n", "lamda is no key: did you mean lambda?"),
    "type": (
        "# @package _global_\nlambda: high\n",
        "In 'experiment/type': ValidationError raised while composing config: "
        "Value 'high' of type 'str' could not be converted to Float",
    ),
    "yaml": (
        "# @package _global_\na: 3\n  x: 1\n",
        'mapping values are not allowed here in "{file}", line 3, column 4',
    ),
    "empty": ("", "the file of experiment must begin with the line: # @package _global_"),
    "choice": (
        "# @package _global_\ndefaults: [{override /trainer: fats}]\n",
        "trainer=fats is unknown: did you mean trainer=fast? All: fast, paper",
    ),
    "number": (
        "# @package _global_\ndefaults: [{override /bits: 8}]\n",
        "the choices of an experiment's defaults are texts: put quotes around a number, override /bits: '8'",
    ),
    "params": (
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {lambda: '0,x'}}}\n",
        "lambda=x is of the wrong type: lambda is a number",
    ),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_mistake_in_somebodys_experiment_file(name: str, command: Command, tmp_path: Path) -> None:
    text, message = EXPERIMENTS[name]
    file = tmp_path / "experiment" / f"{name}.yaml"
    file.parent.mkdir()
    file.write_text(text)
    line = message.replace("{file}", str(file))
    assert command(f"--config-dir {tmp_path} experiment={name}") == (2, f"eat-run: error: {line}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["experiment"]


@pytest.mark.parametrize("scheme", ["pkg://", "PKG://", "structured://", "odd://"])
def test_no_package_is_imported_for_somebodys_config(
    scheme: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    (tmp_path / "mine.yaml").write_text(f"defaults: [config, _self_]\nhydra: {{searchpath: ['{scheme}planted']}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = f"eat-run: error: hydra.searchpath names code ({scheme}planted), {CODE}\n"
    assert command(f"--config-dir {tmp_path} --config-name mine") == (2, line)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["factory", "handler", "environment"])
def test_code_in_one_of_the_experiments_that_are_swept_over(name: str, command: Command, tmp_path: Path) -> None:
    text, message = EXPERIMENTS[name]
    file = tmp_path / "experiment" / f"{name}.yaml"
    file.parent.mkdir()
    file.write_text(text)
    line = f"-m --config-dir {tmp_path} experiment=demo,{name}"
    assert command(line) == (2, f"eat-run: error: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["experiment"]


def test_hydras_own_loggers_can_be_chosen(command: Command) -> None:
    for loggers in ("job_logging=stdout", "job_logging=disabled", "hydra_logging=default", "job_logging=default"):
        code, error = command(f"--cfg job hydra/{loggers}")
        assert (code, error) == (0, "")


def test_an_unknown_launcher_says_where_launchers_come_from(command: Command) -> None:
    code, error = command("-m hydra/launcher=pbs lambda=0,1")
    assert code == 2
    assert error.startswith("eat-run: error: hydra/launcher=pbs is unknown: choose one of basic, ")
    assert error.endswith("come with: pip install 'eat-runner[joblib,slurm]')\n")


def test_the_traceback_is_shown_to_who_asks_for_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, error = command("lamda=1")
    assert code == 2
    assert error.startswith("Traceback (most recent call last):")
    assert error.endswith("\neat-run: error: lamda is no key: did you mean lambda?\n")


@pytest.mark.parametrize("line", ["lamda=1", "-m lambda=0,-1", "--bogus"])
def test_the_real_command_prints_the_same(line: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eat_runner.cli.run", *line.split()], cwd=tmp_path, capture_output=True, text=True
    )
    message = {"-m lambda=0,-1": f"lambda=-1 {FINITE_0}"}.get(line) or BAD[line]
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"eat-run: error: {message}\n")
