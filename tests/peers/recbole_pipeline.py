"""RecBole's own pipeline on exported files: trains SASRec, evaluates it, writes its top ten per test example.

Run in a process of its own, since it needs patches: ``python recbole_pipeline.py FOLDER NAME OUT`` where
``FOLDER/NAME`` holds an export.  RecBole 1.2.1 expects older numpy and pandas.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

for _name, _type in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    if not hasattr(np, _name):
        setattr(np, _name, _type)

_aggregate = pd.Series.agg


def _agg(self: Any, func: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Since pandas 3 ``agg(len)`` is the length of the column, not of each value in it."""
    return self.map(len) if func is len else _aggregate(self, func, *args, **kwargs)


def main(folder: Path, name: str, out: Path) -> None:
    pd.Series.agg = _agg
    sys.argv = sys.argv[:1]  # its Config reads them
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed
    from recbole.utils.case_study import full_sort_topk

    torch.autograd.set_detect_anomaly(False)
    settings = {
        "data_path": str(folder), "checkpoint_dir": str(out / "saved"), "use_gpu": False, "show_progress": False,
        "hidden_size": 16, "inner_size": 32, "n_layers": 1, "n_heads": 2, "epochs": 1, "train_batch_size": 1024,
        "learning_rate": 0.005, "seed": 1, "reproducibility": True, "metric_decimal_place": 8, "worker": 0,
    }  # fmt: skip
    config = Config("SASRec", name, config_file_list=[str(folder / name / f"{name}.yaml")], config_dict=settings)
    init_seed(1, True)
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    trainer.fit(train, saved=False, verbose=False)
    metrics = trainer.evaluate(test, load_best_model=False)

    inter = test.dataset.inter_feat
    scores, items = full_sort_topk(inter["user_id"].numpy(), model, test, k=10)
    examples = dataset.id2token("example_id", inter["example_id"].numpy())
    keys = dataset.id2token("item_id", items.numpy())
    with (out / "ranking.jsonl").open("w") as file:
        for example, row, values in zip(examples, keys, scores.tolist(), strict=True):
            file.write(json.dumps({"example": int(example), "items": row.tolist(), "scores": values}) + "\n")
    sizes = {"items": dataset.item_num - 1, "train": len(train.dataset), "test": len(test.dataset)}
    (out / "metrics.json").write_text(json.dumps({**metrics, **sizes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
