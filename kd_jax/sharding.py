"""The device mesh: which rows of a batch each device holds, and how arrays move to and from the devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """Make a mesh of all devices with one axis, `data`: videos are split over it and parameters are replicated."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def device_rows(batch_size: int, mesh: Mesh) -> int:
    """Round the batch size up to a multiple of the number of devices; the extra rows are padded videos."""
    return -(-batch_size // mesh.size) * mesh.size


def local_rows(rows: int, mesh: Mesh) -> list[int]:
    """List the rows of a batch that the devices of this process hold, ascending. A single process holds all rows."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    indices = split.addressable_devices_indices_map((rows,)).values()
    held = {index[0].indices(rows) for index in indices if index}
    return sorted(row for bounds in held for row in range(*bounds))


def shard(tree: Any, rows: int, mesh: Mesh) -> Any:
    """Split the leading axis of every host array, the `local_rows` of the `rows` of all processes, over the mesh."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x, (rows, *x.shape[1:])), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy every array to each device; all processes pass the same values, or arrays that are split over all."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=everywhere)(x)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])

    return jax.tree.map(put, tree)


def fetch(tree: Any, mesh: Mesh) -> Any:
    """Copy arrays to the host of every process, whether they are split or replicated."""
    return jax.device_get(tree if jax.process_count() == 1 else replicate(tree, mesh))
