"""The tiny Qwen3-VL that ships with the product: its drawings, its builder and the demo data."""
