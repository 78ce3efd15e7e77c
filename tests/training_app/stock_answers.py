"""Answers of base + adapter by transformers and PEFT alone: run as a script, it imports nothing of this project.

    python stock_answers.py BASE_FOLDER ADAPTER_FOLDER rows.json

rows.json is [{"prompt": ..., "image": "file.png"}]; the answers are printed as a JSON list.
"""

import json
import sys
from typing import Any


def main(base_folder: str, adapter_folder: str, rows_file: str) -> None:
    import torch
    from peft import PeftModel
    from PIL import Image
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
    # AutoImageProcessor takes torchvision where it is; without it this is the same in PIL.
    images = Qwen2VLImageProcessorPil.from_pretrained(adapter_folder)
    base = Qwen3VLForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    answers = []
    with open(rows_file, encoding="utf-8") as stream:
        rows = json.load(stream)
    for row in rows:
        inputs = inputs_of(tokenizer, images, row["prompt"], Image.open(row["image"]).convert("RGB"))
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    ours = [name for name in sys.modules if name.partition(".")[0] in {"ftproject", "training_app", "datasets_app"}]
    print(json.dumps({"answers": answers, "ours": ours}))


def inputs_of(tokenizer: Any, images: Any, prompt: str, image: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    pixels = images(images=[image], return_tensors="pt")
    places = int(pixels["image_grid_thw"].prod()) // images.merge_size**2
    encoded = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * places), return_tensors="pt")
    marks = (encoded["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    return {**encoded, **pixels, "mm_token_type_ids": marks}


if __name__ == "__main__":
    main(*sys.argv[1:])
