"""LoRA on a frozen base, in ghost mode, to a target epsilon.

Ghost mode returns four objects: model, optimizer, data_loader, criterion. Here a small BERT is built from a config;
with a pretrained one nothing else changes.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from tacit import PrivacyEngine

torch.manual_seed(0)
config = BertConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=2
)
base = BertForSequenceClassification(config)
model = get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"]))
model.train()

# Sentences of 12 tokens; the label is whether the first token is in the upper half of the vocabulary.
tokens = torch.randint(0, 100, (512, 12))
labels = (tokens[:, 0] >= 50).long()
frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}

engine = PrivacyEngine()
model, optimizer, loader, criterion = engine.make_private_with_epsilon(
    module=model,
    optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3),
    data_loader=DataLoader(TensorDataset(tokens, labels), batch_size=64),
    criterion=nn.CrossEntropyLoss(),
    target_epsilon=8.0,
    target_delta=1e-4,
    epochs=3,
    max_grad_norm=1.0,
    grad_sample_mode="ghost",
)

for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(input_ids=x).logits, y)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}, epsilon {engine.get_epsilon(1e-4):.3f}")

assert engine.get_epsilon(1e-4) <= 8.0
assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"trained {trained} of {sum(p.numel() for p in model.parameters())} parameters; the base did not move")
