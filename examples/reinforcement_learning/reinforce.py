"""Trains an agent to keep a pole upright on a cart, by REINFORCE: flags in, a return out.

The physics are the classic ones: Barto, Sutton and Anderson 1983, four numbers and two actions. The
output is the mean number of steps of 200 that the pole stays up, in episodes apart from training's;
the cost is the number of steps of the environment, so that it is the same on any machine.
"""

import argparse
import json

import numpy as np
import torch

LONGEST = 200
N_EVALUATED = 64


class Carts:
    """Many carts at a time, each with its pole: position, speed, angle, angular speed."""

    def __init__(self, n: int, random: np.random.Generator) -> None:
        self.state = random.uniform(-0.05, 0.05, (n, 4))
        self.is_up = np.ones(n, bool)

    def step(self, is_right: np.ndarray) -> None:
        _, speed, angle, turning = self.state.T
        push = np.where(is_right, 10.0, -10.0) + 0.05 * turning**2 * np.sin(angle)
        pushed = push / 1.1  # by the weight of cart and pole
        turn = (9.8 * np.sin(angle) - np.cos(angle) * pushed) / (
            0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1)
        )
        shift = pushed - 0.05 * turn * np.cos(angle) / 1.1
        moved = self.state + 0.02 * np.column_stack([speed, shift, turning, turn])
        self.state = np.where(self.is_up[:, None], moved, self.state)
        self.is_up &= (abs(self.state[:, 0]) < 2.4) & (abs(self.state[:, 2]) < np.radians(12))


def play(policy, n: int, random: np.random.Generator):
    """Log-probabilities of what was done, and whether the pole was still up: each ``(t, n)``."""
    carts, done, up = Carts(n, random), [], []
    while carts.is_up.any() and len(up) < LONGEST:
        logit = policy(torch.tensor(carts.state, dtype=torch.float32)).squeeze(1)
        chance = torch.sigmoid(logit.detach()).numpy()
        is_right = random.uniform(size=n) < chance
        sign = torch.tensor(np.where(is_right, 1.0, -1.0), dtype=torch.float32)
        done.append(torch.nn.functional.logsigmoid(sign * logit))
        up.append(carts.is_up.copy())
        carts.step(is_right)
    return torch.stack(done), torch.tensor(np.array(up), dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--discount", type=float, default=0.95)
    parser.add_argument("--episodes", type=int, default=8, help="in each update")
    parser.add_argument("--updates", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    policy = torch.nn.Sequential(
        torch.nn.Linear(4, args.width), torch.nn.Tanh(), torch.nn.Linear(args.width, 1)
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.lr)
    n_steps = 0.0
    for update in range(1, args.updates + 1):
        done, up = play(policy, args.episodes, random)
        n_steps += float(up.sum())
        returns = torch.zeros_like(up)
        later = torch.zeros(args.episodes)
        for t in reversed(range(len(up))):
            later = up[t] + args.discount * later
            returns[t] = later
        advantage = (returns - (returns * up).sum() / up.sum()) * up
        optimizer.zero_grad()
        (-(done * advantage).sum() / up.sum()).backward()
        optimizer.step()
        if update % 10 == 0 or update == args.updates:
            with torch.no_grad():
                _, up = play(policy, N_EVALUATED, np.random.default_rng(1))
            output = float(up.sum(0).mean())
            said = {"step": update, "n_steps": args.updates, "output": output, "cost": n_steps}
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
