"""Sweeps: plain wandb files, searched by wandb's agents or, where nobody is logged in, by its engine here."""
