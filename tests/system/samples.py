"""Small files of many kinds to identify; each call writes the same bytes."""

import gzip
import json
import random
import sqlite3
import struct
import tarfile
import wave
import zipfile
import zlib
from pathlib import Path

_C = """#include <stdio.h>
#include <stdlib.h>

/* Sum the numbers given on the command line. */
int main(int argc, char **argv) {
    long sum = 0;
    for (int i = 1; i < argc; i++) {
        sum += strtol(argv[i], NULL, 10);
    }
    printf("%ld\\n", sum);
    return EXIT_SUCCESS;
}
"""
_PYTHON = '''"""Count words."""

import sys
from collections import Counter


def count(path: str) -> Counter[str]:
    with open(path) as file:
        return Counter(word for line in file for word in line.split())


if __name__ == "__main__":
    for word, n in count(sys.argv[1]).most_common(10):
        print(f"{n:6} {word}")
'''
_MARKDOWN = """# A small library

It does *one* thing, see [the guide](docs/guide.md).

## Install

```sh
pip install small
```

- fast
- **correct**
- documented
"""
_HTML = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Hello</title><link rel="stylesheet" href="style.css"></head>
<body><h1>Hello</h1><p>A page with a <a href="/next">link</a>.</p><script>alert(1)</script></body>
</html>
"""
_XML = """<?xml version="1.0" encoding="UTF-8"?>
<catalog xmlns="urn:example:catalog">
  <book id="1"><title>First</title><price currency="EUR">12.50</price></book>
  <book id="2"><title>Second</title><price currency="EUR">9.90</price></book>
</catalog>
"""
_SHELL = """#!/bin/sh
set -eu
for file in "$@"; do
    if [ -f "$file" ]; then
        wc -l < "$file"
    else
        echo "no such file: $file" >&2
    fi
done
"""
_TOML = """[package]
name = "example"
version = "1.2.3"
authors = ["Someone <someone@example.org>"]

[dependencies]
serde = { version = "1.0", features = ["derive"] }

[[bin]]
name = "tool"
path = "src/main.rs"
"""
_YAML = """---
name: build
on:
  push:
    branches: [main]
jobs:
  test:
    runs-on: linux
    steps:
      - name: test
        run: make test
"""
_JAVA = """package org.example;

import java.util.ArrayList;
import java.util.List;

public final class Main {
    private static final int LIMIT = 10;

    public static void main(String[] args) {
        List<String> names = new ArrayList<>();
        for (int i = 0; i < LIMIT; i++) {
            names.add("name " + i);
        }
        System.out.println(names);
    }
}
"""
_RUST = """use std::collections::HashMap;

#[derive(Debug, Clone)]
struct Word<'a> { text: &'a str, count: usize }

fn main() {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in "a b a".split_whitespace() {
        *counts.entry(word).or_insert(0) += 1;
    }
    let words: Vec<Word> = counts.iter().map(|(text, count)| Word { text, count: *count }).collect();
    println!("{:?}", words);
}
"""
_MAKEFILE = """CC := gcc
OBJECTS := main.o words.o

.PHONY: all clean

all: words

words: $(OBJECTS)
\t$(CC) -o $@ $^

%.o: %.c
\t$(CC) -c -o $@ $<

clean:
\trm -f words $(OBJECTS)
"""
_JAVASCRIPT = """'use strict';

const fs = require('fs');

async function read(path) {
  const text = await fs.promises.readFile(path, 'utf8');
  return text.split('\\n').filter((line) => line.length > 0);
}

read(process.argv[2]).then((lines) => {
  console.log(`${lines.length} lines`);
});

module.exports = { read };
"""
_CSS = """body {
  margin: 0 auto;
  font: 16px/1.5 sans-serif;
  color: #222;
}

a:hover { text-decoration: none; }

@media (max-width: 600px) {
  .sidebar { display: none; }
}
"""
_SQL = """CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT NOT NULL, born DATE);
INSERT INTO person (name, born) VALUES ('Ada', '1815-12-10'), ('Grace', '1906-12-09');
SELECT p.name, count(*) FROM person p JOIN visit v ON v.person_id = p.id GROUP BY p.name ORDER BY 2 DESC;
"""
_PROSE = """It was late when the ship came in, and no one was left on the quay but the harbour
master and his dog. They waited for the lines to be thrown, as they had on a thousand
evenings before, and said nothing.
"""
_TEXTS = {
    "words.py": _PYTHON,
    "sum.c": _C,
    "README.md": _MARKDOWN,
    "page.html": _HTML,
    "catalog.xml": _XML,
    "count.sh": _SHELL,
    "Cargo.toml": _TOML,
    "build.yaml": _YAML,
    "Main.java": _JAVA,
    "main.rs": _RUST,
    "Makefile": _MAKEFILE,
    "read.js": _JAVASCRIPT,
    "style.css": _CSS,
    "person.sql": _SQL,
    "prose.txt": _PROSE,
    "short.txt": "hello",
    "blank.txt": " \n\t \n" * 20,
    # Longer than a block, with whitespace where the windows begin and end.
    "padded.py": "\n" * 1500 + _PYTHON * 20 + " \n" * 1500,
    "blank-end.c": _C * 20 + "\n" * 5000,
}


def write(folder: Path) -> list[Path]:
    """Write all samples into ``folder``; a few are too small or too plain for the model to be asked."""
    chance = random.Random(7)
    for name, text in _TEXTS.items():
        (folder / name).write_text(text)
    (folder / "rows.csv").write_text("id,name,amount\n" + "".join(f"{i},name {i},{i * 1.5}\n" for i in range(60)))
    (folder / "data.json").write_text(
        json.dumps({"rows": [{"id": i, "tags": ["a", "b"]} for i in range(30)]}, indent=2)
    )
    (folder / "empty").write_bytes(b"")
    (folder / "short.bin").write_bytes(b"\xff\xfe\x80")
    (folder / "random.bin").write_bytes(chance.randbytes(20_000))
    # A character of three bytes lies across the end of the first block, after nothing but blanks.
    (folder / "cut.txt").write_bytes(b" " * 4094 + "€".encode() * 10)
    (folder / "image.png").write_bytes(_png())
    (folder / "image.gif").write_bytes(_gif())
    (folder / "page.pdf").write_bytes(_pdf())
    (folder / "prose.gz").write_bytes(gzip.compress(_PROSE.encode() * 50, mtime=0))
    with zipfile.ZipFile(folder / "texts.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sum.c", _C)
        archive.writestr("prose.txt", _PROSE)
    with tarfile.open(folder / "texts.tar", "w") as tar:
        tar.add(folder / "sum.c", "sum.c")
        tar.add(folder / "prose.txt", "prose.txt")
    with wave.open(str(folder / "tone.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(b"".join(struct.pack("<h", 8000 if i % 40 < 20 else -8000) for i in range(8000)))
    database = sqlite3.connect(folder / "person.sqlite")
    database.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT)")
    database.executemany("INSERT INTO person (name) VALUES (?)", [(f"name {i}",) for i in range(100)])
    database.commit()
    database.close()
    return sorted(folder.iterdir())


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((x * y) % 256 for x in range(64)) for y in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _gif() -> bytes:
    screen = struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    image = b"," + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02\x03\x44\x02\x05\x00"
    return b"GIF89a" + screen + image + b";"


def _pdf() -> bytes:
    content = b"BT /F1 24 Tf 72 720 Td (Hello) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
    ]
    body = b"%PDF-1.4\n" + b"".join(b"%d 0 obj\n%s\nendobj\n" % (i, text) for i, text in enumerate(objects, 1))
    return body + b"trailer\n<< /Root 1 0 R /Size 5 >>\nstartxref\n0\n%%EOF\n"
