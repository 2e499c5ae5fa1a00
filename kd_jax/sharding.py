"""The device mesh: which rows of a batch a device holds, and how arrays get there and back."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def data_mesh() -> jax.sharding.Mesh:
    """One axis, `data`, over all devices: videos are spread, parameters are replicated."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def device_rows(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """The batch size rounded up to a multiple of the devices; the extra rows are padded videos."""
    return -(-batch_size // mesh.size) * mesh.size


def local_rows(rows: int, mesh: jax.sharding.Mesh) -> list[int]:
    """Those rows of a batch that the devices of this process hold, ascending; of one process: all."""
    spread = NamedSharding(mesh, PartitionSpec("data"))
    held = {index.indices(rows) for (index,) in spread.addressable_devices_indices_map((rows,)).values()}
    return sorted(row for bounds in held for row in range(*bounds))


def shard(tree, rows: int, mesh: jax.sharding.Mesh):
    """Spreads the leading axis of every array, of `rows`, over the mesh; the arrays hold its `local_rows`."""
    spread = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(spread, array, (rows, *array.shape[1:])), tree
    )


def replicate(tree, mesh: jax.sharding.Mesh):
    """Puts a copy of every array on each device; each process gives the same values, or arrays spread over all."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def put(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=everywhere)(x)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])

    return jax.tree.map(put, tree)


def fetch(tree, mesh: jax.sharding.Mesh):
    """Copies arrays, however spread, to the host of every process."""
    return jax.device_get(tree if jax.process_count() == 1 else replicate(tree, mesh))
