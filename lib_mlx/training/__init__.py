"""Fine-tuning: adapters and weights from examples."""
