"""Trains a small network to read handwritten digits, as many scripts do: flags in, a loss out."""

import argparse
import json

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--dropout", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
order = torch.randperm(len(labels))
held_out, train = order[:400], order[400:]

model = torch.nn.Sequential(
    torch.nn.Linear(64, args.width),
    torch.nn.ReLU(),
    torch.nn.Dropout(args.dropout),
    torch.nn.Linear(args.width, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
for epoch in range(args.epochs):
    model.train()
    for batch in train[torch.randperm(len(train))].split(32):
        loss = cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(images[held_out])
    output = float(cross_entropy(logits, labels[held_out]))
    accuracy = float((logits.argmax(1) == labels[held_out]).float().mean())
    # The only line that the sweep needs.
    said = {"step": epoch + 1, "n_steps": args.epochs, "output": output, "accuracy": accuracy}
    print(json.dumps(said))
