"""Ways to spoil a data set's files."""

import pickle
import zlib

import h5py
import made_files as made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ran = []


class Evil:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return ran.append, (1,)


def hdf5(change):
    """Change an open hdf5 file in place."""

    def apply(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def put(name, **settings):
    """An array instead of the one of that name."""

    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, **settings)

    return hdf5(change)


def link(name, target):
    def change(file):
        file.move(name, "elsewhere")
        file[name] = target

    return hdf5(change)


def value(name, place, number):
    def change(file):
        values = file[name][()].astype(np.float64)
        values[place] = number
        del file[name]
        file[name] = values

    return hdf5(change)


def virtual(file):
    del file["rewards"]
    layout = h5py.VirtualLayout((5,), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (5,))
    file.create_virtual_dataset("rewards", layout)


def huge_chunks(file):
    del file["actions"]
    item = file.create_dataset("actions", (5, 2**26), "f8", chunks=(1, 2**26), compression="gzip")
    item.id.write_direct_chunk((0, 0), b"is never unpacked")


def chunks(file):
    for part in "01":
        for name in made.COLUMNS:
            file[f"virtual/{part}/{name}"] = file[name][()]
    file["virtual/1/costs"] = np.zeros(5)
    for name in made.COLUMNS:
        del file[name]


def absurd(file):
    del file["observations"]
    item = file.create_dataset("observations", (2**50, 3), "f4", chunks=(1024, 3), compression="gzip")
    item.id.write_direct_chunk((0, 0), zlib.compress(bytes(12 * 1024)))


def pickled(file):
    del file["rewards"]
    file["rewards"] = np.array([np.void(pickle.dumps(Evil()))] * 5)


def cut(share):
    def apply(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return apply


def info(**changes):
    return lambda path: made.change_json(path / "meta" / "info.json", **changes)


def feature(name, **changes):
    def apply(path):
        file = path / "meta" / "info.json"
        features = made.json.loads(file.read_text())["features"]
        features[name] = features.get(name, {}) | changes
        made.change_json(file, features=features)

    return apply


def column(file, name, values):
    """Another column instead of the one of that name, or none."""

    def apply(path):
        (place,) = path.glob(file)
        table = pq.read_table(place)
        columns = {key: table[key] for key in table.column_names if key != name}
        pq.write_table(pa.table(columns | ({} if values is None else {name: values})), place)

    return apply


def twice(file, name):
    """A second column of the same name."""

    def apply(path):
        (place,) = path.glob(file)
        table = pq.read_table(place)
        pq.write_table(table.append_column(name, table[name]), place)

    return apply


def inside(place, apply):
    return lambda path: apply(path / place)


DATA, EPISODES, MAIN = "data/*/*.parquet", "meta/episodes/*/*.parquet", "data/main_data.hdf5"
ACTIONS = [[0.0, 0.0]] * 5
VIDEO = {"dtype": "video", "shape": [8, 6, 3]}
