"""Finds images that repeat others: equal files, equal pixels, re-encoded or resized copies, and crops.

- *equal*: the same bytes, or the same pixels after decoding;
- *near*: perceptual hashes (pHash: signs of the lowest frequencies of a 32 x 32 cosine transform) that differ in few of
  their 64 bits. At most 4 bits are a *strong* match, at most 10 one to *review*;
- *crop*: one image shows a part of the other. Hashes of complete images miss crops, and hashes of a grid of windows found
  two thirds of random crops here. ORB keypoints (Rublee et al., ICCV 2011) are matched instead: images that share enough
  descriptors are candidates, a similarity transform is fitted (RANSAC), and the correlation of the aligned pixels decides.
  Drawings with few corners have few keypoints; their crops are found only if they are near copies.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import scipy.fft
from jaxtyping import Float, UInt8, UInt32
from PIL import Image

from dv2_jax.curation.temporary_database import open_temporary_database

STRONG_BITS, REVIEW_BITS = 4, 10
SIDE = 640  # pixels of the longer side at which keypoints are found
KEYPOINTS = 500
KEY_BITS, TABLES = 20, 8  # descriptors share a candidate if all bits of one of the keys are equal
MIN_VOTES = 4  # descriptors of an image that two images share, by keys, to be compared
MIN_INLIERS = 12
MIN_CORRELATION = 0.8  # of the aligned pixels; re-encoded crops have 0.9 to 1
MIN_CONTRAST = 2.0  # gray values; hashes of nearly uniform images are noise
MAX_CANDIDATES = 50  # images with most votes that are aligned
_HASH_SIDE, _LOW = 32, 8
_rng = np.random.default_rng(0)
_CHOSEN_BITS = np.stack([_rng.choice(256, KEY_BITS, replace=False) for _ in range(TABLES)])


def decode_gray(data: bytes) -> UInt8[np.ndarray, "H W"]:
    """Decodes an image to gray, transparent areas on white, oriented as its EXIF data says.

    Raises:
        OSError: not an image.
    """
    from PIL import ImageOps

    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.asarray(upright.convert("L"))


def perceptual_hash(gray: UInt8[np.ndarray, "H W"]) -> int:
    """Returns the 64-bit pHash: bit i is set where coefficient i of the 8 x 8 lowest frequencies exceeds their median.

    The constant coefficient, which is brightness, does not enter the median.
    """
    small = cv2.resize(gray, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = scipy.fft.dctn(small, type=2)[:_LOW, :_LOW].ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def hamming(first: int, second: int) -> int:
    """Returns the number of bits that differ."""
    return (first ^ second).bit_count()


def contrast(gray: UInt8[np.ndarray, "H W"]) -> float:
    """Returns the standard deviation of gray values (0 to 127.5). Hashes of nearly uniform areas are noise."""
    return float(gray.std())


@dataclass(frozen=True)
class ImageMatch:
    """Two images that repeat each other.

    `bits` is the distance of their hashes. `correlation`, for crops, is the normalized cross-correlation at the best
    position, 1 for equal pixels.
    """

    other: str
    kind: Literal["equal", "near", "review", "crop"]
    bits: int
    correlation: float | None = None

    @property
    def is_strong(self) -> bool:
        """True where no person needs to look at the pair."""
        return self.kind != "review"


@dataclass(frozen=True)
class Features:
    """The keypoints of an image: positions (x, y) in `small`, and 256-bit descriptors."""

    small: UInt8[np.ndarray, "h w"]
    points: Float[np.ndarray, "K 2"]
    descriptors: UInt8[np.ndarray, "K 32"]


class ImageOverlapIndex:
    """An index of images by id, which finds those that a new image repeats, contains, or is a crop of.

    Memory holds at most 48 kB per image, the keys of its keypoints and their table. The keypoints and a gray copy of at most
    640 pixels per side, up to 430 kB, are in a temporary database on disk.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._digests: dict[str, list[int]] = {}
        self._hashes: list[int] = []
        self._is_flat: list[bool] = []
        self._features = open_temporary_database(
            "CREATE TABLE features (number INTEGER PRIMARY KEY, height INTEGER, small BLOB, points BLOB, descriptors BLOB)"
        )
        self._keys: list[UInt32[np.ndarray, "TABLES K"]] = []
        self._table: tuple[np.ndarray, np.ndarray] | None = None  # (sorted keys, number of their image)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id_: str, data: bytes) -> None:
        """Adds an encoded image.

        Raises:
            OSError: not an image.
        """
        gray = decode_gray(data)
        number = len(self._ids)
        self._ids.append(id_)
        for digest in image_digests(data, gray):
            self._digests.setdefault(digest, []).append(number)
        self._hashes.append(perceptual_hash(gray))
        self._is_flat.append(contrast(gray) < MIN_CONTRAST)
        features = find_features(gray)
        arrays = features.small, features.points, features.descriptors
        self._features.execute(
            "INSERT INTO features VALUES (?, ?, ?, ?, ?)", (number, len(features.small), *(x.tobytes() for x in arrays))
        )
        self._keys.append(keypoint_keys(features))
        self._table = None

    def matches(self, data: bytes) -> list[ImageMatch]:
        """Returns the indexed images that `data` repeats, the strictest kind for each, strict ones first.

        Raises:
            OSError: not an image.
        """
        gray = decode_gray(data)
        found: dict[int, ImageMatch] = {}
        for digest in image_digests(data, gray):
            for number in self._digests.get(digest, ()):
                found.setdefault(number, ImageMatch(self._ids[number], "equal", 0, 1.0))
        if contrast(gray) >= MIN_CONTRAST and self._ids:
            self._add_near(perceptual_hash(gray), found)
            self._add_crops(gray, found)
        order = {"equal": 0, "near": 1, "crop": 2, "review": 3}
        return sorted(found.values(), key=lambda match: (order[match.kind], match.bits, match.other))

    def _add_near(self, own: int, found: dict[int, ImageMatch]) -> None:
        bits = np.bitwise_count(np.array(self._hashes, np.uint64) ^ np.uint64(own))
        for number in np.flatnonzero(bits <= REVIEW_BITS):
            if not self._is_flat[number]:
                kind: Literal["near", "review"] = "near" if bits[number] <= STRONG_BITS else "review"
                found.setdefault(int(number), ImageMatch(self._ids[number], kind, int(bits[number])))

    def _add_crops(self, gray: np.ndarray, found: dict[int, ImageMatch]) -> None:
        own = find_features(gray)
        own_hash = perceptual_hash(gray)
        for number in self._candidates(own):
            known = found.get(number)
            if known is None or not known.is_strong:
                correlation = aligned_correlation(own, self._read_features(number))
                if correlation >= MIN_CORRELATION:
                    bits = hamming(own_hash, self._hashes[number])
                    found[number] = ImageMatch(self._ids[number], "crop", bits, round(correlation, 4))

    def _candidates(self, own: Features) -> list[int]:
        """Returns the images that share a key with at least `MIN_VOTES` descriptors, those with most votes first."""
        if not len(own.descriptors):
            return []
        table, owners = self._key_table()
        keys = keypoint_keys(own)
        starts, ends = np.searchsorted(table, keys, "left"), np.searchsorted(table, keys, "right")
        votes = np.zeros(len(self._ids), np.int64)
        for per_table in range(TABLES):
            for start, end in zip(starts[per_table], ends[per_table], strict=True):
                if 0 < end - start <= 64:  # a key of very many descriptors says nothing
                    np.add.at(votes, np.unique(owners[start:end]), 1)
        chosen = np.flatnonzero(votes >= MIN_VOTES)
        return [int(number) for number in chosen[np.argsort(-votes[chosen], kind="stable")][:MAX_CANDIDATES]]

    def _read_features(self, number: int) -> Features:
        query = "SELECT height, small, points, descriptors FROM features WHERE number = ?"
        height, small, points, descriptors = self._features.execute(query, (number,)).fetchone()
        return Features(
            np.frombuffer(small, np.uint8).reshape(height, -1),
            np.frombuffer(points, np.float32).reshape(-1, 2),
            np.frombuffer(descriptors, np.uint8).reshape(-1, 32),
        )

    def _key_table(self) -> tuple[np.ndarray, np.ndarray]:
        if self._table is None:
            owners = np.repeat(np.arange(len(self._keys), dtype=np.uint32), [keys.size for keys in self._keys])
            joined = np.concatenate([keys.ravel() for keys in self._keys])
            order = np.argsort(joined, kind="stable")
            self._table = joined[order], owners[order]
        return self._table


def keypoint_keys(features: Features) -> UInt32[np.ndarray, "TABLES K"]:
    """Returns the keys of the descriptors: the number of the table and `KEY_BITS` chosen bits of a descriptor."""
    bits = np.unpackbits(features.descriptors, axis=1)
    powers = np.uint32(1) << np.arange(KEY_BITS, dtype=np.uint32)
    values = [bits[:, chosen].astype(np.uint32) @ powers for chosen in _CHOSEN_BITS]
    return np.stack([value | np.uint32(number << KEY_BITS) for number, value in enumerate(values)])


def find_features(gray: UInt8[np.ndarray, "H W"]) -> Features:
    """Finds at most `KEYPOINTS` keypoints (ORB) of an image, shrunk to `SIDE` pixels."""
    small = _shrink(gray, SIDE)
    orb = cv2.ORB_create(nfeatures=KEYPOINTS, scaleFactor=1.2, nlevels=10, fastThreshold=8, edgeThreshold=16)
    keypoints, descriptors = orb.detectAndCompute(small, None)
    if descriptors is None:
        return Features(small, np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))
    return Features(small, np.array([point.pt for point in keypoints], np.float32), descriptors)


def aligned_correlation(first: Features, second: Features) -> float:
    """Returns the correlation (-1 to 1) of two images where a similarity transform aligns their keypoints; else -1.

    The transform is rotation, uniform scale and translation, from matches that are mutual nearest neighbors. At least
    `MIN_INLIERS` must agree with it, and the common area must cover a quarter of one of the images.
    """
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(first.descriptors, second.descriptors)
    matches = [match for match in matches if match.distance <= 64]
    if len(matches) < MIN_INLIERS:
        return -1.0
    source = first.points[[match.queryIdx for match in matches]]
    target = second.points[[match.trainIdx for match in matches]]
    cv2.setRNGSeed(0)
    transform, inliers = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=4.0, maxIters=5000)
    if transform is None or int(inliers.sum()) < MIN_INLIERS:
        return -1.0
    height, width = second.small.shape
    moved = cv2.warpAffine(first.small, transform, (width, height), flags=cv2.INTER_AREA)
    mask = cv2.warpAffine(np.full_like(first.small, 255), transform, (width, height)) == 255
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    covered = max(mask.mean(), mask.sum() / max(1.0, first.small.size * scale**2))
    if covered < 0.25 or mask.sum() < 400:
        return -1.0
    pair = np.stack([moved[mask], second.small[mask]]).astype(np.float64)
    if pair.std(axis=1).min() < MIN_CONTRAST:
        return -1.0
    return float(np.corrcoef(pair)[0, 1])


def _shrink(gray: UInt8[np.ndarray, "H W"], side: int) -> UInt8[np.ndarray, "h w"]:
    factor = side / max(gray.shape)
    if factor >= 1:
        return gray
    height, width = (max(1, round(length * factor)) for length in gray.shape)
    return cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)


def image_digests(data: bytes, gray: Float[np.ndarray, "H W"]) -> tuple[str, str]:
    """Returns digests of the file and of its pixels (and size)."""
    pixels = hashlib.sha256(str(gray.shape).encode() + gray.tobytes()).hexdigest()
    return hashlib.sha256(data).hexdigest(), "pixels:" + pixels
