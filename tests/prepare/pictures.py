"""A small ImageNet in every form that users have it in: the same pictures, byte for byte."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n02084071")


def encoded(pixels: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def imagenet(per_class: int = 6, *, side: int = 40) -> dict[str, bytes]:
    """Files by class/file: smooth noise, of many shapes."""
    files = {}
    for synset in SYNSETS:
        for number in range(per_class):
            rng = np.random.default_rng(int(synset[1:]) + number)
            small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            shape = (side + int(rng.integers(60)), side + int(rng.integers(60)))
            pixels = np.array(Image.fromarray(small).resize(shape))
            files[f"{synset}/{synset}_{number}.JPEG"] = encoded(pixels)
    return files


def odd_pictures() -> dict[str, bytes]:
    """What ImageNet and cameras hold beside plain JPEGs."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 70, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees
    deep = io.BytesIO()
    Image.fromarray(rng.integers(0, 65536, (40, 50), dtype=np.uint16)).save(deep, "PNG")
    return {
        "n1/exif.JPEG": encoded(pixels, exif=turned),
        "n1/cmyk.JPEG": encoded(pixels, mode="CMYK"),
        "n1/grey.JPEG": encoded(pixels, mode="L"),
        "n1/named.JPEG": encoded(pixels, "PNG"),
        "n1/alpha.png": encoded(pixels, "PNG", "RGBA"),
        "n2/deep.png": deep.getvalue(),
        "n2/tiny.png": encoded(pixels[:1, :2], "PNG"),
        "n2/huge.webp": encoded(np.zeros((1500, 2500, 3), dtype=np.uint8), "WEBP"),
    }


def as_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, payload in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    return root


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, payload in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return made.getvalue()


def class_tars(files: dict[str, bytes]) -> dict[str, bytes]:
    classes = sorted({name.partition("/")[0] for name in files}, reverse=True)
    return {
        f"{each}.tar": _tar(
            {n.partition("/")[2]: p for n, p in files.items() if n.startswith(each)}
        )
        for each in classes
    }


def as_tar_of_tars(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(_tar(class_tars(files)))
    return path


def as_zip(path: Path, files: dict[str, bytes], *, below: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files, reverse=True):
            archive.writestr(below + name, files[name])
    return path


def as_shards(root: Path, files: dict[str, bytes]) -> Path:
    """Two WebDataset shards with jpg and cls."""
    root.mkdir()
    names = sorted(files)
    classes = sorted({name.partition("/")[0] for name in names})
    for number in range(2):
        members = {}
        for name in names[number::2]:
            folder, _, file = name.partition("/")
            stem = file.partition(".")[0]
            members[f"{stem}.jpg"] = files[name]
            members[f"{stem}.cls"] = str(classes.index(folder)).encode()
        (root / f"{number}.tar").write_bytes(_tar(members))
    return root


def as_parquet(root: Path, files: dict[str, bytes]) -> Path:
    """Two files as Hugging Face writes them, with the names of the classes in their notes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    names = sorted(files)
    classes = sorted({name.partition("/")[0] for name in names})
    notes = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
    for number in range(2):
        mine = names[number::2]
        rows = [{"bytes": files[name], "path": name.partition("/")[2]} for name in mine]
        labels = [classes.index(name.partition("/")[0]) for name in mine]
        table = pa.table({"image": rows, "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps(notes)})
        pq.write_table(table, root / f"train-{number:05d}-of-00002.parquet", row_group_size=4)
    return root


def hashes(root: Path) -> dict[str, str]:
    """Of each shard below a folder, by its name."""
    return {
        path.relative_to(root).as_posix(): xxhash.xxh3_64_hexdigest(path.read_bytes())
        for path in sorted(root.rglob("*.tar"))
    }


def members(root: Path) -> dict[str, bytes]:
    """All members of all shards below a folder."""
    found = {}
    for path in sorted(root.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                assert info.name not in found
                found[info.name] = file.read()
    return found
