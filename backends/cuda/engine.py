"""The CUDA engine: programs as launches of kernels, weights and KV cache in a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.dims import evaluate, product
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module, Node
from briolette.compiler.views import view_of

from .. import formats
from ..base import Choice, F32Array, Memory, Options, Room, Source, TokenRows, Weights, checked, checked_rows
from ..planes import Rings
from ..reading import stored_bytes
from .choosing import THREADS, WISH_BYTES, can_choose, sample_kernel, wish
from .compilation import GROUPS, Compilation, Compiled, Program, compiled, groups_of, rows_of, watching
from .device import Device, open_device
from .emit import Layout, layout_of
from .planes import DevicePlane
from .source import module_source
from .steps import Argument, Launch, blocks, known, row_stride

name = "cuda"
I32 = 4
ALIGN = 256
LIBRARIES = 400 << 20  # what the run-time compiler and the driver take of the host's memory: an estimate


class CudaEngine:
    """Sequences of one model on a device.

    Programs are launched kernel by kernel where steps differ in their number of tokens; decoding is captured once as a
    graph. A step uploads its tokens, runs, and downloads logits: nothing is allocated and nothing waits in between.
    """

    def __init__(self, compilation: Compilation, weights: Weights, options: Options, device: Device):
        self.compilation, self.weights, self.options, self.device = compilation, weights, options, device
        self.closed = False
        self.owned: list[int] = []
        self.sizes: dict[str, int] = {}
        self.rings = Rings(options)
        self.planes: dict[tuple[int, str], tuple[DevicePlane, int]] = {}
        self.stored: dict[Node, int] = {}
        self.chunk = options.chunk
        self.inputs = self.alloc("tables", _inputs_bytes(options))
        self.chosen, self.wished = self.alloc("tables", I32), self.alloc("tables", WISH_BYTES)  # see `choose`
        self.chooser: Any = None  # the kernel, when it is first wanted
        self.groups: dict[tuple[str, ...], Loaded] = {}

    @property
    def vocabulary(self) -> int:
        """See `base.Engine.vocabulary`."""
        return self.compilation.vocabulary

    @property
    def allocated(self) -> dict[str, int]:
        """See `base.Engine.allocated`: bytes of the device's memory."""
        return {kind: self.sizes.get(kind, 0) for kind in ("decoded", "packed", "kv", "arena", "scratch", "tables")}

    def prepare(self) -> None:
        """See `base.Engine.prepare`."""
        self.group("decode")

    def close(self) -> None:
        """Gives the device's memory back; the engine cannot be used after."""
        self.closed = True
        for address in self.owned:
            self.device.free(address)
        self.owned.clear()

    # --- running ------------------------------------------------------------------------------------

    def step(self, tokens: Sequence[int], start: int, logits: str = "last", sequence: int = 0) -> F32Array:
        """See `base.Engine.step`."""
        rows = checked(tokens, start, self.compilation.token_ids, self.options, sequence)
        if len(rows) == 1:
            return self._run("decode", rows)
        if logits == "all":
            return self._every(rows)
        for at in range(0, len(rows), self.chunk):
            result = self._run("prefill", rows.part(at, self.chunk))
        return result

    def batch(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> F32Array:
        """See `base.Engine.batch`."""
        rows = checked_rows(tokens, positions, sequences, self.compilation.token_ids, self.options)
        if len(rows) == 1:
            return self._run("decode", rows)
        return self._every(rows, "batch")

    def choose(self, token: int, position: int, choice: Choice, sequence: int = 0) -> int | None:
        """See `base.Chooses.choose`."""
        if not can_choose(choice):
            return None
        rows = checked([token], position, self.compilation.token_ids, self.options, sequence)
        loaded = self.group("decode")
        self.call(loaded, "decode", rows)
        if self.chooser is None:
            kernel = sample_kernel(self.vocabulary)
            self.chooser = self.device.module(module_source([kernel])).kernel(kernel.name)
        self.device.write(self.wished, wish(choice))
        self.device.launch(self.chooser, (1, 1, 1), THREADS, [loaded.out, self.wished, self.chosen])
        return int(self.device.read(self.chosen, I32).view(np.int32)[0])

    def _every(self, rows: TokenRows, program: str = "all") -> F32Array:
        """Every token's logits."""
        chunk = rows_of(program, self.options)
        parts = [self._run(program, rows.part(at, chunk)) for at in range(0, len(rows), chunk)]
        return np.concatenate(parts)

    def values(
        self, tokens: Sequence[int], wanted: Sequence[Node], last: Mapping[Node, int] | None = None
    ) -> list[NDArray[Any]]:
        """See `base.Engine.values`."""
        rows, chunk = checked(tokens, 0, self.compilation.token_ids, self.options), rows_of("all", self.options)
        planned = watching(self.compilation.module, tuple(wanted), self.options)
        loaded = Loaded(self, compiled({"values": planned}))
        parts = []
        for at in range(0, len(rows), chunk):
            part = rows.part(at, chunk)
            self.call(loaded, "values", part)
            found = [loaded.value("values", output, len(part)) for output in planned.module.outputs[1:]]
            for i, item in enumerate(wanted):
                if last and item in last:
                    found[i] = found[i][max(0, len(rows) - last[item] - at) :]
            parts.append(found)
        loaded.free()
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def rewindable(self, end: int, to: int, sequence: int = 0) -> bool:
        """Whether every ring still holds the window before `to`, with `end` positions written."""
        return self.rings.hold(end, to, sequence, self._planes())

    def checkpoint(self) -> Callable[[], None]:
        """See `base.Engine.checkpoint`."""
        sizes = [(plane.memory(self.options), address) for plane, address in self.planes.values()]
        kept = [
            (address, self.device.read(address, memory.bytes))
            for memory, address in sizes
            if memory.positions < self.options.context
        ]
        rings = self.rings.copy()

        def restore() -> None:
            for address, content in kept:
                self.device.write(address, content)
            self.rings = rings.copy()

        return restore

    def _planes(self) -> list[DevicePlane]:
        return [plane for plane, _ in self.planes.values()]

    def _run(self, program: str, rows: TokenRows) -> F32Array:
        """Runs a program; gives its logits."""
        loaded = self.group(program)
        self.call(loaded, program, rows)
        size = loaded.programs[program].result_size(len(rows))
        return self.device.read(loaded.out, 4 * size).view(np.float32).reshape(-1, self.vocabulary)

    def group(self, program: str) -> Loaded:
        """The programs that are compiled together with one, when any of them is first wanted."""
        names = next(names for names in GROUPS if program in names)
        if names not in self.groups:
            self.groups[names] = Loaded(self, self.compilation.compiled(self.options, names))
        return self.groups[names]

    def call(self, loaded: Loaded, program: str, rows: TokenRows) -> None:
        """Runs a step of a program."""
        if self.closed:
            raise BrioletteError("this engine has been closed")
        self.rings.write(rows, self._planes())
        inputs = np.zeros(1 + 3 * self.chunk, np.int32)
        inputs[0] = len(rows)
        for i, given in enumerate((rows.ids, rows.positions, rows.sequences)):
            inputs[1 + i * self.chunk :][: len(rows)] = given
        self.device.write(self.inputs, inputs.view(np.uint8))
        loaded.stage(rows.ids)
        loaded.run(program, len(rows))

    # --- memory -------------------------------------------------------------------------------------

    def alloc(self, kind: str, size: int) -> int:
        """The address of memory that is the engine's until it is closed."""
        address = self.device.alloc(max(size, 1))
        self.owned.append(address)
        self.sizes[kind] = self.sizes.get(kind, 0) + size
        return address

    def upload(self, kind: str, data: NDArray[Any]) -> int:
        """The same, with what it holds."""
        content = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        address = self.alloc(kind, content.nbytes)
        self.device.write(address, content)
        return address

    def address_of(self, item: Node) -> int:
        """A stored weight on the device, copied there when it is first wanted; a `dequant` as f32."""
        if item not in self.stored:
            weight = item if item.op == "weight" else item.args[0]
            content = self.weights.stored(weight["name"])
            if item.op == "weight":
                self.stored[item] = self.upload("packed", content)
            else:
                self.stored[item] = self.upload("decoded", _decoded(weight, content))
            self.weights.forget(weight["name"])
        return self.stored[item]

    def plane_of(self, plane: DevicePlane) -> int:
        """A plane's memory, allocated once for all programs."""
        key = plane.slot, plane.plane
        if key not in self.planes:
            size = plane.memory(self.options).bytes
            address = self.alloc("kv", size)
            self.device.write(address, np.zeros(size, np.uint8))
            self.planes[key] = plane, address
        return self.planes[key][1]


def _decoded(weight: Node, content: NDArray[np.uint8]) -> F32Array:
    width = formats.row_bytes(weight.type.dtype, known(weight.shape[-1])) if weight.shape else content.size
    return formats.decode(weight.type.dtype, np.ascontiguousarray(content).reshape(-1, width))


class Loaded:
    """Programs on the device, with the memory that they share."""

    def __init__(self, engine: CudaEngine, made: Compiled):
        self.engine, self.device, self.programs = engine, engine.device, made.programs
        self.made = made
        layout = made.layout
        options = engine.options
        self.kernels = self.compiled(made)
        capacities = np.array([plane.positions(options) for plane in layout.planes] or [0], np.int64)
        results = max(program.result_size(program.rows) for program in self.programs.values())
        self.arena = engine.alloc("arena", made.arena)
        self.out = engine.alloc("arena", 4 * results)
        self.staging = [(table, engine.alloc("tables", row_stride(table) * engine.chunk)) for table in layout.staged]
        chunk, inputs = I32 * engine.chunk, engine.inputs
        self.tables: dict[str, Sequence[int]] = {
            "arena": [self.arena],
            "out": [self.out],
            "scratch": [engine.alloc("scratch", layout.scratch)],
            "weights": [engine.address_of(item) for item in layout.weights],
            "planes": [engine.plane_of(plane) for plane in layout.planes],
            "capacities": [engine.upload("tables", capacities)],
            "staged": [address for _, address in self.staging],
            "rows": [inputs],
            **{kind: [inputs + I32 + i * chunk] for i, kind in enumerate(("tokens", "positions", "slots"))},
        }
        self.graphs: dict[str, Callable[[], None]] = {}

    def compiled(self, made: Compiled) -> dict[str, Any]:
        """Kernels by name, compiled in several modules at once where the device is for it."""
        units = made.units(self.device.compilers)
        with ThreadPoolExecutor(self.device.compilers) as pool:
            modules = pool.map(self.device.module, [source for source, _ in units])
            return {
                name: module.kernel(name) for (_, names), module in zip(units, modules, strict=True) for name in names
            }

    def stage(self, ids: NDArray[np.int32]) -> None:
        """Rows of the tables that stay in the host's memory, for a step's tokens."""
        for table, address in self.staging:
            width = row_stride(table)
            rows = self.engine.weights.stored(table["name"]).reshape(-1, width)
            self.device.write(address, np.ascontiguousarray(rows[ids]).reshape(-1))

    def run(self, program: str, rows: int) -> None:
        """A step's launches; those of one token as a graph."""
        if rows != 1 or self.programs[program].rows != 1:
            return self.launch(self.programs[program], rows)
        if program in self.graphs:
            return self.graphs[program]()
        self.launch(self.programs[program], 1)  # what is loaded when it is first used must not be captured
        self.graphs[program] = self.device.graph(lambda: self.launch(self.programs[program], 1))
        return None

    def launch(self, program: Program, rows: int) -> None:
        for launch in program.launches:
            self.start(launch, {"T": rows})

    def start(self, launch: Launch, sizes: Mapping[str, int]) -> None:
        grid = tuple(blocks(size, sizes) for size in launch.grid)
        arguments = [self.address(argument, sizes) for argument in launch.arguments]
        sized = (grid[0], grid[1], grid[2])
        self.device.launch(self.kernels[launch.kernel], sized, launch.threads, arguments, launch.shared)

    def address(self, argument: Argument, sizes: Mapping[str, int]) -> int:
        return self.tables[argument.table][argument.index] + evaluate(argument.offset, sizes)

    def value(self, program: str, output: Node, rows: int) -> NDArray[Any]:
        """What an output after the first was, after a step of a program."""
        view = view_of(output)
        buffer = self.programs[program].plan.buffers.get(view.base)
        size = buffer.bytes if buffer else 4 * self.programs[program].result_size(rows)
        memory = self.device.read(self.arena + buffer.offset if buffer else self.out, size)
        dtype = np.int32 if output.type.dtype == "i32" else np.float32
        return view.show(memory.view(dtype), {"T": rows}).copy()

    def free(self) -> None:
        """Gives back what is these programs' own, but for the weights that they share with others."""
        staged, shared = self.tables["staged"], ("scratch", "capacities")
        for address in (self.arena, self.out, *staged, *(self.tables[name][0] for name in shared)):
            self.engine.owned.remove(address)
            self.device.free(address)


def ops() -> frozenset[str]:
    """See `base.Backend.ops`."""
    from .support import kernels

    return frozenset(kernels())


def default_weights() -> str:
    """Packed: products in integers."""
    return "packed"


def compilation_of(source: Source | Module) -> Compilation:
    """The compilation of a source, kept with it."""
    given = Source.of(source)
    found: Compilation = given.made.setdefault("cuda", None) or Compilation(given.module)
    given.made["cuda"] = found
    return found


def compile(source: Source | Module, weights: Weights, options: Options, device: Device | None = None) -> CudaEngine:
    """See `base.Backend.compile`; on the GPU, unless another device is given."""
    return CudaEngine(compilation_of(source), weights, options, device or open_device())


def room() -> Room:
    """See `base.DeviceBackend.room`."""
    device = open_device()
    return Room(device.room(), device.name)


def _inputs_bytes(options: Options) -> int:
    """Of what a step is given: how many tokens, then their ids, positions and sequences."""
    return I32 * (1 + 3 * options.chunk)


def memory(source: Source | Module, cache: str) -> Callable[..., Memory]:
    """See `base.Backend.memory`: of the device, but for what is mapped and looked up in, which is the host's. `groups`
    of programs other than those of generation may be asked for."""
    compilation = compilation_of(source)
    made: dict[tuple[Options, tuple[str, ...]], tuple[Layout, int, int]] = {}

    def planned(options: Options, group: tuple[str, ...]) -> tuple[Layout, int, int]:
        """The tables of a group, the bytes of its arena and its largest result in numbers."""
        wanted = replace(options, cache=cache, context=options.chunk, sequences=1, threads=1)  # what it depends on
        if (wanted, group) not in made:
            plans = [compilation.plan(name, wanted) for name in group]
            results = max(evaluate(product(p.module.outputs[0].shape), {"T": p.rows}) for p in plans)
            made[wanted, group] = layout_of(plans), max(p.arena for p in plans), results
        return made[wanted, group]

    def of(options: Options, groups: Sequence[tuple[str, ...]] | None = None) -> Memory:
        taken = [planned(options, group) for group in groups or groups_of(options)]
        layouts = [layout for layout, _, _ in taken]
        weights = dict.fromkeys(item for layout in layouts for item in layout.weights)
        planes = {(plane.slot, plane.plane): plane for layout in layouts for plane in layout.planes}
        staged = {table["name"]: table for layout in layouts for table in layout.staged}
        tables = [  # of each group, as `Loaded` has them
            8 * max(1, len(layout.planes)) + options.chunk * sum(map(row_stride, layout.staged)) for layout in layouts
        ]
        return Memory(
            mapped={name: stored_bytes(table) for name, table in staged.items()},
            rows={name: row_stride(table) for name, table in staged.items()},
            decoded={
                item.args[0]["name"]: 4 * int(np.prod([known(n) for n in item.shape]))
                for item in weights
                if item.op == "dequant"
            },
            planes=tuple(plane.memory(options) for plane in planes.values()),
            arena=sum(arena + 4 * results for _, arena, results in taken),
            scratch=sum(layout.scratch for layout in layouts),
            tables=_inputs_bytes(options) + I32 + WISH_BYTES + sum(tables),
            logits=4 * max(results for _, _, results in taken),
            packed={item["name"]: stored_bytes(item) for item in weights if item.op == "weight"},
            libraries=LIBRARIES,
            nodes=compilation.nodes,
        )

    return of
