"""Tunes a gradient-boosted classifier on real data; what a run costs is the seconds that it took.

python examples/scikit_learn/digits.py --trials 40
"""

import argparse
import time
from typing import Any

from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from carbs import LogSpace, Param, minimize

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(digits.data, digits.target, random_state=0)


def train(params: dict[str, Any]) -> tuple[float, float]:
    started = time.process_time()
    model = HistGradientBoostingClassifier(early_stopping=False, random_state=0, **params)
    model.fit(x_train, y_train)
    seconds = time.process_time() - started
    return log_loss(y_test, model.predict_proba(x_test)), seconds


PARAMS = [
    Param("max_iter", LogSpace(min=1, is_integer=True, scale=0.5), search_center=5),
    Param("learning_rate", LogSpace(scale=0.5), search_center=0.1),
    Param("max_leaf_nodes", LogSpace(min=2, is_integer=True, scale=0.5), search_center=4),
    Param("l2_regularization", LogSpace(), search_center=0.1),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--path", default="digits.json", help="goes on from here, if it exists")
    args = parser.parse_args()
    result = minimize(train, PARAMS, max_cost=20, n_trials=args.trials, path=args.path)
    for run in result.pareto_front():
        print(f"{run.cost:8.2f} s  loss {run.output:.4f}  {run.params}")


if __name__ == "__main__":
    main()
