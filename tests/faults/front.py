"""A process in front of the model server of a world, so that `kill -9` is what it is: the kernel closes all it had.

    python -m tests.faults.front PORT TARGET_PORT

It hands on bytes both ways, and a reset as a reset. What the server was asked and what it said stays known behind it.
"""

import asyncio
import socket
import struct
import sys

RESET = struct.pack("ii", 1, 0)  # linger for no time: the peer gets a reset, not an orderly end


async def serve(port: int, target_port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", target_port)
        except OSError:
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(hand_on(reader, behind_writer)),
            asyncio.create_task(hand_on(behind_reader, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (writer, behind_writer):
            each.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
