"""`python -m benchmarks.slow_images SECONDS`: an image server with a latency, in a process of its own."""

import asyncio
import io
import sys

from PIL import Image


def photo() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((320, 240), 60).convert("RGB").save(stream, "JPEG", quality=85)
    return stream.getvalue()


async def serve(latency: float) -> None:
    """Answers each path with a photo of its own after the latency, on kept connections; prints its port."""
    body = photo()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(latency)
                image = body + head.split()[1]  # what follows the end of a JPEG is not looked at
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
