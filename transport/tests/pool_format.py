"""Reads a pool by docs/pool-format.md alone, to show that the document suffices. Prints what it finds, line by line.

Usage: pool_format.py POOL. It knows nothing of the Rust code; where a check of the document fails, it says so and exits 1.
"""

import struct
import sys
import zlib

PAGE = 4096


def need(holds, what):
    if not holds:
        sys.exit(f"not as documented: {what}")


def up(value, unit=PAGE):
    return -(-value // unit) * unit


def main(path):
    with open(path, "rb") as file:
        pool = file.read()

    def u32(at):
        return struct.unpack_from("<I", pool, at)[0]

    def u64(at):
        return struct.unpack_from("<Q", pool, at)[0]

    # Section 2.
    need(pool[:8] == b"TOMBOLO\0", "magic")
    need((u32(8), u32(12)) == (4, 128), "version and length")
    length, members, extent_len, boxes = u64(32), u32(40), u64(64), u32(76)
    extents = 4096 + up(members * 128)
    control = 4096 + up(boxes * 256)
    slots = 64
    while slots > 8 and slots * members > 4096:
        slots //= 2
    stride = 128 + 64 * slots
    board = control + up(members * stride)
    heap = board + PAGE
    need(length == extents + members * extent_len == len(pool), "length of the pool")
    need((u32(44), u64(48), u64(56)) == (128, 4096, extents), "member table and first extent")
    need((u32(72), u32(80), u32(84), u32(88), u32(92)) == (4096, control, stride, slots, heap), "parts of an extent")
    need(u32(96) == board, "bell board")
    need(pool[100:124] == bytes(24), "reserved bytes")
    need(u32(124) == zlib.crc32(pool[:124]), "checksum of the superblock")
    print(f"pool: {members} members, extents of {extent_len}, {boxes} records")

    def extent(member):
        return extents + member * extent_len

    # Sections 3 and 4.
    alive = {}
    for member in range(members):
        row = 4096 + member * 128
        need(u64(row) % 2 == 0, "no row is being written")
        covered = pool[row + 8 : row + 32] + pool[row + 40 : row + 80]
        need(u64(row + 80) == zlib.crc32(covered), f"checksum of row {member}")
        if u32(row + 12) != 1:
            continue
        name = pool[row + 48 : row + 48 + u64(row + 40)].decode()
        generation, fenced = u64(extent(member)), u64(row + 32)
        if generation and fenced < generation <= fenced + 2**32:
            alive[member] = generation
        print(f"member {member}: cid {u32(row + 8)}, {name}, {'alive' if member in alive else 'dead'}")
        status = extent(member)
        if u64(status + 128):
            incarnation = pool[status + 16 : status + 32].hex()
            print(f"heart of member {member}: {u64(status + 128)} beats, phase {u64(status + 8)}, {incarnation}")
        for slot in range(boxes):
            record = extent(member) + 4096 + slot * 256
            stamp = u64(record)
            if stamp and stamp % 2 == 0 and (stamp // 2 - 1) % boxes == slot:
                text = pool[record + 32 : record + 32 + u32(record + 20)].decode()
                print(f"black box of member {member}: {stamp // 2}, level {u32(record + 16)}, {text}")

    # Sections 5 and 6.
    kinds = {1: "CONNECT", 2: "ACCEPT", 3: "REFUSE", 4: "CLOSED", 5: "RESOLVE", 6: "RESOLVED"}
    for writer in alive:
        for reader in alive:
            block = extent(writer) + control + reader * stride
            if writer == reader or (u64(block), u64(block + 8)) != (alive[reader], alive[writer]):
                continue
            for slot in range(slots):
                at = block + 128 + 64 * slot
                if u64(at) == 0:
                    continue
                record = at + 8
                kind = kinds[pool[record]]
                print(f"record {u64(at)} from {writer} to {reader}: {kind} {pool[record + 1]}")
                if kind in ("CONNECT", "ACCEPT"):
                    offset, nonce, layout = u64(record + 24), u64(record + 32), u32(record + 4)
                    on_pages = layout >> 16 & 0xFF or (layout >> 8 & 0xFF) >= 16
                    need(offset % (PAGE if on_pages else 128) == 0 and extent(writer) + heap <= offset, "offset of a half")
                    half(pool, u64, u32, writer, offset, nonce, layout)
                    # Section 10.
                    group = (offset // 128 * 0x9E3779B1 & 0xFFFFFFFF) >> 24
                    counted = extent(writer) + board
                    need(u64(offset + 0x038) <= u64(counted + 2048 + 8 * group), "bells counted in the group of a half")
                    groups = sum(u64(counted + 2048 + 8 * (group // 16 * 16 + place)) for place in range(16))
                    need(groups == u64(counted + 8 * (group // 16)), "groups and their summary")


def half(pool, u64, u32, member, at, nonce, layout):
    # Sections 7 and 8.
    need(pool[at : at + 8] == b"TmbHalf2", "magic of a half")
    need((u64(at + 8), u64(at + 16)) == (nonce, layout), "nonce and layout of a half")
    slots, ring = (1 << (layout >> shift & 0xFF) if layout >> shift & 0xFF else 0 for shift in (0, 8))
    ring_at = at + up(0x180 + 64 * slots, PAGE if ring >= 64 << 10 else 128)
    said = f"half of member {member}, state {u64(at + 0x18)}"
    if not slots:
        tail = u64(at + 0x100)
        need(tail <= ring, "this reader knows streams that have not gone round only")
        print(f"{said}: {tail} bytes, {pool[ring_at : ring_at + tail].decode()}")
        return
    number, position = 0, 0
    # Nothing is acknowledged, so nothing starts again at slot 0.
    while u32(at + 0x180 + 64 * number) == number + 1:
        slot = at + 0x180 + 64 * number
        kind = pool[slot + 4]
        if kind <= 56:
            print(f"{said}: message {number} in its slot, {pool[slot + 8 : slot + 8 + kind].decode()}")
        else:
            need(kind == 57 or 65 <= kind <= 92, "kind of a message")
            lengths = [u64(slot + 8)] if kind == 57 else struct.unpack_from(f"<{kind - 64}H", pool, slot + 8)
            for length in lengths:
                body = pool[ring_at + position : ring_at + position + length]
                what = "in the ring" if kind == 57 else f"of a run of {len(lengths)}"
                print(f"{said}: message {number} {what}, {len(body)} bytes, {zlib.crc32(body):08x}")
                position += length
        number += 1


main(sys.argv[1])
