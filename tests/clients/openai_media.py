"""Plays a user of openai-python's audio, images and moderations; prints what it saw as one line of JSON.

Run by tests/test_door_opaque.py: ``python openai_media.py BASE_URL``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai


def main(base_url: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
    saw: dict[str, Any] = {}
    with client.audio.speech.with_streaming_response.create(model="mana/test", voice="alloy", input="x") as response:
        saw["speech"] = [len(b"".join(response.iter_bytes())), response.headers["content-type"]]
    recording = ("a.mp3", b"\xff\xf3--b0\r\n" * 9)
    saw["transcription"] = client.audio.transcriptions.create(model="mana/test", file=recording, response_format="srt")
    saw["translation"] = client.audio.translations.create(model="mana/test", file=recording).text
    saw["image"] = (client.images.generate(model="mana/test", prompt="x").data or [])[0].b64_json
    saw["edit"] = (client.images.edit(model="mana/test", prompt="x", image=recording).data or [])[0].b64_json
    saw["moderation"] = client.moderations.create(model="mana/test", input="x").results[0].flagged
    try:
        client.audio.speech.create(model="mana/nosuch", voice="alloy", input="x")
    except openai.NotFoundError as error:
        saw["missing"] = error.code
    return saw


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
