"""Recurrent blocks for PyTorch Lightning: cells, layers and LightningModules."""
