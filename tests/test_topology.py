"""Every topology keeps the same promises; a new one is one line in TOPOLOGIES."""

import pickle
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cga_lightning.topology import (
    TOPOLOGIES,
    BaseGraph,
    Bipartite,
    Complete,
    DirectedRing,
    ErdosRenyi,
    Exponential,
    FromMatrix,
    Hypercube,
    OnePeerExponential,
    Ring,
    SmallWorld,
    Star,
    Topology,
    Torus,
    Tree,
    from_name,
    spanning_tree,
)
from tests.graphs import connected


class Hub(Topology):
    """The user's own: agent 0 in the middle."""

    def edges(self, agents):
        return [(0, rank) for rank in range(1, agents)]


class Matching(Topology):
    """The user's own that varies in time: at step t each agent meets the one whose rank differs in bit t."""

    def edges(self, agents):
        return [(rank, rank ^ 1 << bit) for bit in range(agents.bit_length() - 1) for rank in range(agents)]

    def at(self, step):
        return Phase(self.agents, step % (self.agents.bit_length() - 1))


class Phase(Topology):
    """One step of it, as a plain class."""

    def __init__(self, agents, bit):
        object.__setattr__(self, "bit", bit)
        super().__init__(agents)

    def edges(self, agents):
        return [(rank, rank ^ 1 << self.bit) for rank in range(agents)]


@dataclass(frozen=True, repr=False)
class Path(Topology):
    """From rank to rank; `step_edges` are the edges of each step, if it varies in time."""

    step_edges: tuple[list[tuple[int, int]], ...] = ()

    def edges(self, agents):
        return [(rank, rank + 1) for rank in range(agents - 1)]

    def at(self, step):
        return Given(self.agents, self.step_edges[step % len(self.step_edges)]) if self.step_edges else self


@dataclass(frozen=True, repr=False)
class Given(Topology):
    given: list[tuple[int, int]] | None = None

    def edges(self, agents):
        return self.given


class GivenOneWay(Given):
    directed = True


class Weighted(Ring):
    """The user's own weights: more for the agent itself, as much as `own`."""

    own = 0.5

    def mixing_matrix(self):
        return self.own * np.eye(self.agents) + (1 - self.own) * super().mixing_matrix()


NAMED = [from_name(name) for name in TOPOLOGIES]
UNDIRECTED = [
    *(topology for topology in NAMED if not topology.directed and type(topology).at is Topology.at),
    ErdosRenyi(p=0.3),
    SmallWorld(p=1.0),
    Tree(branches=3),
    Hub(),
]
DIRECTED = [*(topology for topology in NAMED if topology.directed), BaseGraph(), BaseGraph(k=3)]  # or varying in time
HALVES = [[0.5, 0.5], [0.5, 0.5]]
SIZES = [2, 3, 4, 5, 8, 9, 40]


def assert_doubly_stochastic(matrix):
    assert matrix.dtype == np.float64
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


def assert_edges_match_weights(topology, matrix):
    weighty = (matrix > 1e-12) & ~np.eye(len(matrix), dtype=bool)
    for rank in range(topology.agents):
        assert topology.in_neighbors(rank) == np.flatnonzero(weighty[rank]).tolist()
        assert topology.out_neighbors(rank) == np.flatnonzero(weighty[:, rank]).tolist()


def assert_weights_are_rows(topology):
    matrix = topology.mixing_matrix()
    for rank in range(topology.agents):
        weights = topology.weights(rank)
        assert list(weights) == [rank, *topology.in_neighbors(rank)]
        assert all(type(weight) is float and weight == matrix[rank, other] for other, weight in weights.items())
        assert np.count_nonzero(matrix[rank]) <= len(weights)


def assert_gossip_averages(topology, steps=400):
    values = np.linspace(-1, 1, topology.agents) ** 3
    for step in range(steps):
        values = topology.at(step).mixing_matrix() @ values
    gap = topology.spectral_gap()
    assert 0 < gap <= 1 + 1e-12
    np.testing.assert_allclose(values, values.mean(), atol=2 * np.exp(-gap * steps) + 1e-12)


@pytest.mark.parametrize("agents", SIZES)
@pytest.mark.parametrize("topology", UNDIRECTED + DIRECTED, ids=repr)
def test_promises(topology, agents):
    bound = topology.bind(agents)
    matrix = bound.mixing_matrix()
    assert bound.agents == agents and matrix.shape == (agents, agents)
    assert_doubly_stochastic(matrix)
    assert_edges_match_weights(bound, matrix)
    assert_weights_are_rows(bound)
    assert_gossip_averages(bound)
    for step in range(7):
        assert_doubly_stochastic(bound.at(step).mixing_matrix())
        assert_edges_match_weights(bound.at(step), bound.at(step).mixing_matrix())
        assert_weights_are_rows(bound.at(step))
    assert set(bound.phases) == {bound.at(step) for step in range(max(7, len(bound.phases)))}


@pytest.mark.parametrize("agents", SIZES)
@pytest.mark.parametrize("topology", UNDIRECTED, ids=repr)
def test_undirected(topology, agents):
    bound = topology.bind(agents)
    assert bound.at(3) is bound
    assert (bound.mixing_matrix() == bound.mixing_matrix().T).all()
    for rank in range(agents):
        assert bound.neighbors(rank) == bound.in_neighbors(rank) == bound.out_neighbors(rank)
        assert all(type(neighbor) is int for neighbor in bound.neighbors(rank))


@pytest.mark.parametrize("topology", UNDIRECTED + DIRECTED + [FromMatrix(np.full((3, 3), 1 / 3))], ids=repr)
def test_is_a_value(topology):
    bound = topology.bind(3)
    bound.mixing_matrix()[:] = 7  # the caller's copy
    bound.in_neighbors(0).append(7)
    bound.weights(0)[7] = 7
    assert 7 not in bound.in_neighbors(0) and 7 not in bound.weights(0)
    assert pickle.loads(pickle.dumps(bound)) == bound == topology.bind(3)
    assert hash(bound) == hash(topology.bind(3))
    assert_doubly_stochastic(pickle.loads(pickle.dumps(bound)).mixing_matrix())
    with pytest.raises(FrozenInstanceError):
        bound.agents = 4


def test_bind():
    assert Ring(5).bind(5) == Ring().bind(5) == Ring(5) != Complete(5)
    ring = Ring(5)
    assert ring.bind(5) is ring
    with pytest.raises(ValueError, match=r"Ring\(5\) describes 5 agents, but the run has 4; run 5"):
        ring.bind(4)


def test_repr():
    assert [repr(Ring()), repr(Ring(5))] == ["Ring()", "Ring(5)"]
    assert repr(ErdosRenyi(5, p=0.3)) == "ErdosRenyi(5, p=0.3, seed=0)"
    assert repr(FromMatrix(np.eye(4) / 2 + 1 / 8)) == "FromMatrix(4x4)"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("neighbors", [0]), ("weights", [0]), ("mixing_matrix", []), ("spectral_gap", []), ("highest_degree", [])],
)
@pytest.mark.parametrize("topology", UNDIRECTED + DIRECTED, ids=repr)
def test_unbound_cannot_be_used(topology, method, arguments):
    with pytest.raises(ValueError, match=r"is not bound to a number of agents; call bind\(agents\)"):
        getattr(topology, method)(*arguments)


def test_neighbors_by_hand():
    assert [Ring(2).neighbors(r) for r in (0, 1)] == [[1], [0]]
    assert Ring(5).neighbors(0) == [1, 4] and Ring(5).neighbors(3) == [2, 4]
    assert Complete(4).neighbors(2) == [0, 1, 3]
    assert Torus(12).neighbors(0) == [1, 3, 4, 8]  # 3 rows of 4
    assert Torus(12, rows=2).neighbors(0) == [1, 5, 6]
    assert Torus(7).neighbors(0) == [1, 6]
    assert Exponential(9).neighbors(0) == [1, 2, 4, 5, 7, 8]
    assert DirectedRing(5).out_neighbors(0) == [1] and DirectedRing(5).in_neighbors(0) == [4]


def test_published_bipartite_graph():
    assert [Bipartite(5).neighbors(r) for r in range(5)] == [[2, 3, 4], [2, 3, 4], [0, 1], [0, 1], [0, 1]]
    assert Bipartite(2).neighbors(0) == [1]
    assert Bipartite(3).neighbors(2) == [0, 1]
    assert Bipartite(6, left=3).neighbors(0) == [3, 4, 5]
    np.testing.assert_allclose(Bipartite(5).mixing_matrix()[0], [1 / 4, 0, 1 / 4, 1 / 4, 1 / 4])
    np.testing.assert_allclose(Bipartite(5).mixing_matrix()[2], [1 / 4, 1 / 4, 1 / 2, 0, 0])


def test_weights_by_hand():
    np.testing.assert_allclose(Ring(2).mixing_matrix(), [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(Ring(5).mixing_matrix()[0], [1 / 3, 1 / 3, 0, 0, 1 / 3])
    np.testing.assert_allclose(Complete(5).mixing_matrix(), np.full((5, 5), 0.2))
    np.testing.assert_allclose(Hub(4).mixing_matrix()[1], [1 / 4, 3 / 4, 0, 0])
    np.testing.assert_allclose(DirectedRing(3).mixing_matrix(), [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]])


def test_spectral_gap_by_hand():
    assert Complete(7).spectral_gap() == pytest.approx(1)
    assert Ring(9).spectral_gap() == pytest.approx(1 - (1 + 2 * np.cos(2 * np.pi / 9)) / 3)
    assert DirectedRing(8).spectral_gap() == pytest.approx(1 - np.cos(np.pi / 8))


@pytest.mark.parametrize("agents", [2, 4, 8, 16])
def test_one_peer_exponential_averages_in_one_period(agents):
    topology = OnePeerExponential(agents)
    period = agents.bit_length() - 1
    product = np.eye(agents)
    for step in range(period):
        product = topology.at(step).mixing_matrix() @ product
    np.testing.assert_allclose(product, 1 / agents, atol=1e-12)
    assert topology.at(period) == topology.at(0)
    assert all(len(topology.at(t).out_neighbors(0)) == 1 for t in range(period))


@settings(deadline=None)
@given(st.integers(2, 130), st.integers(1, 6))
def test_base_graphs_average_exactly_in_one_period_with_k_neighbors(agents, k):
    topology = BaseGraph(agents, k=k).bind(agents)
    product = np.eye(agents)
    for graph in topology.phases:
        product = graph.mixing_matrix() @ product
        assert graph.symmetric and graph.highest_degree()[1] <= k
    np.testing.assert_allclose(product, 1 / agents, atol=1e-12)
    assert len(topology.phases) <= 2 * np.log(agents) / np.log(k + 1) + 2
    assert topology.at(len(topology.phases)) is topology.at(0)


def test_a_base_graph_of_a_power_of_two_is_a_hypercube_bit_by_bit():
    graphs = BaseGraph(8).phases
    assert [graph.neighbors(0) for graph in graphs] == [[1], [2], [4]]
    assert len(BaseGraph(5).phases) == 5 and len(BaseGraph(6).phases) == 4  # 6 = 2 x 3
    assert len(BaseGraph(6, k=2).phases) == 2 and len(BaseGraph(7, k=6).phases) == 1


def test_stars_trees_hypercubes_and_small_worlds():
    assert [Star(5).neighbors(r) for r in (0, 3)] == [[1, 2, 3, 4], [0]]
    assert [Tree(7).neighbors(r) for r in (0, 1, 6)] == [[1, 2], [0, 3, 4], [2]]
    assert Tree(4, branches=1).neighbors(1) == [0, 2]
    assert Hypercube(8).neighbors(5) == [1, 4, 7] and Hypercube(6).neighbors(5) == [1, 4]
    world, ring = SmallWorld(40, p=0.5), Ring(40)
    shortcuts = {(a, b) for a in range(40) for b in world.neighbors(a) if b not in ring.neighbors(a) and a < b}
    assert 8 <= len(shortcuts) <= 32 and all(set(ring.neighbors(r)) <= set(world.neighbors(r)) for r in range(40))
    assert world == SmallWorld(40, p=0.5) and world.spectral_gap() > 3 * ring.spectral_gap()
    assert any(world.neighbors(r) != SmallWorld(40, p=0.5, seed=1).neighbors(r) for r in range(40))
    assert [SmallWorld(9, p=0.0).neighbors(r) for r in range(9)] == [Ring(9).neighbors(r) for r in range(9)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BaseGraph(5, k=0), "BaseGraph needs k of at least 1, got k=0"),
        (lambda: Tree(5, branches=0), "Tree needs branches of at least 1, got branches=0"),
        (lambda: SmallWorld(5, p=1.5), "SmallWorld needs 0 <= p <= 1, got p=1.5"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_directed_graphs_have_no_neighbors():
    with pytest.raises(ValueError, match=r"DirectedRing\(5\) is directed; use in_neighbors"):
        DirectedRing(5).neighbors(0)
    assert DirectedRing(2).neighbors(0) == [1]


def test_push_weights_are_column_stochastic():
    class Flower(Topology):
        directed = True

        def edges(self, agents):
            return [(0, 1), (1, 2), (2, 0), (0, 2)]

    expected = [[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]]
    np.testing.assert_allclose(Flower(3).mixing_matrix(), expected)


def test_erdos_renyi_is_seeded():
    assert ErdosRenyi(40, seed=1).neighbors(0) == ErdosRenyi(40, seed=1).neighbors(0)
    assert any(ErdosRenyi(40, seed=1).neighbors(r) != ErdosRenyi(40, seed=2).neighbors(r) for r in range(40))


@given(st.lists(st.tuples(st.permutations(range(5)), st.floats(0.1, 1)), min_size=1, max_size=4))
def test_from_matrix_takes_every_mixture_of_permutations(terms):
    matrix = np.eye(5) + 1.0 / 5
    matrix = matrix / 2 + sum(weight * np.eye(5)[list(order)] for order, weight in terms)
    matrix /= matrix.sum(axis=1, keepdims=True)
    topology = FromMatrix(matrix.tolist())
    np.testing.assert_array_equal(topology.mixing_matrix(), matrix)
    assert_edges_match_weights(topology, matrix)
    assert_weights_are_rows(topology)


def drawn(generator):
    """A connected graph of networkx, named nodes and all, its edges, and its mixing matrix written out."""
    nx = pytest.importorskip("networkx")
    agents = int(generator.integers(3, 12))
    pairs = [(i, int(generator.integers(i))) for i in range(1, agents)]
    pairs += [tuple(generator.choice(agents, 2, replace=False).tolist()) for _ in range(agents)]
    graph = nx.Graph()
    graph.add_nodes_from(f"agent {i}" for i in range(agents))
    graph.add_edges_from((f"agent {i}", f"agent {j}") for i, j in pairs)
    edges = {(i, j) for pair in pairs for i, j in (pair, pair[::-1])}
    degrees = [sum(i == rank for i, _ in edges) for rank in range(agents)]
    matrix = np.zeros((agents, agents))
    for i, j in edges:
        matrix[i, j] = 1 / (1 + max(degrees[i], degrees[j]))
    return graph, edges, matrix + np.diag(1 - matrix.sum(1))


FORMS = {
    "networkx": lambda nx, sp, graph: graph,
    "networkx, both ways": lambda nx, sp, graph: graph.to_directed(),
    "networkx, edges twice": lambda nx, sp, graph: nx.compose(nx.MultiGraph(graph), nx.MultiGraph(graph)),
    "numpy": lambda nx, sp, graph: nx.to_numpy_array(graph),
    "counts": lambda nx, sp, graph: 3 * nx.to_numpy_array(graph, dtype=int),
    "rows of booleans": lambda nx, sp, graph: (nx.to_numpy_array(graph) > 0).tolist(),
    "scipy array": lambda nx, sp, graph: nx.to_scipy_sparse_array(graph),
    "scipy matrix": lambda nx, sp, graph: sp.coo_matrix(nx.to_numpy_array(graph)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(8))
def test_graphs_of_others_have_metropolis_weights(form, seed):
    nx, sp = pytest.importorskip("networkx"), pytest.importorskip("scipy.sparse")
    graph, edges, matrix = drawn(np.random.default_rng(seed))
    topology = FromMatrix(FORMS[form](nx, sp, graph)).bind(len(matrix))
    np.testing.assert_allclose(topology.mixing_matrix(), matrix, atol=1e-15)
    assert topology.symmetric and sum(map(len, map(topology.neighbors, range(len(matrix))))) == len(edges)


@pytest.mark.parametrize(
    "form", ["csr_matrix", "csr_array", "coo_array", "torch", "sparse", "with a gradient", "graph"]
)
def test_matrices_of_others_are_taken_as_they_are(form):
    nx, sp = pytest.importorskip("networkx"), pytest.importorskip("scipy.sparse")
    matrix = np.array([[0.7, 0.3, 0], [0.3, 0.2, 0.5], [0, 0.5, 0.5]])
    others = {
        "torch": torch.tensor,
        "sparse": lambda matrix: torch.tensor(matrix).to_sparse(),
        "with a gradient": lambda matrix: torch.tensor(matrix, requires_grad=True),
        "graph": nx.from_numpy_array,
    }
    topology = FromMatrix((others.get(form) or getattr(sp, form))(matrix))
    np.testing.assert_array_equal(topology.mixing_matrix(), matrix)
    assert topology.neighbors(0) == [1]


def test_weights_of_a_graph_that_are_no_mixing_matrix_do_not_count():
    nx = pytest.importorskip("networkx")
    karate = nx.karate_club_graph()  # weights are how often two members met
    np.testing.assert_array_equal(FromMatrix(karate).mixing_matrix(), Given(34, [*karate.edges]).mixing_matrix())


def test_a_directed_graph_has_no_mixing_matrix():
    nx = pytest.importorskip("networkx")
    with pytest.raises(ValueError, match="does not follow from a directed graph; give the matrix itself, or write a"):
        FromMatrix(nx.DiGraph([(0, 1), (1, 2), (2, 0)]))


@given(st.integers(0, 2**32), st.sampled_from([1e-17, 1e-16, 1e-12, 5e-9]))
def test_entries_of_rounding_size_are_no_edges(seed, size):
    generator = np.random.default_rng(seed)
    ring = Ring(8).mixing_matrix()
    noise = size * generator.uniform(-1, 1, (8, 8)) * (generator.random((8, 8)) < 0.5)
    topology = FromMatrix(ring + noise * (ring == 0)).bind(8)
    np.testing.assert_array_equal(topology.mixing_matrix(), ring)
    assert [topology.neighbors(rank) for rank in range(8)] == [Ring(8).neighbors(rank) for rank in range(8)]
    assert topology.symmetric

    class Noisy(Ring):
        def mixing_matrix(self):
            return ring + noise * (ring == 0)

    noisy = Noisy(8).bind(8)
    assert [noisy.weights(rank) for rank in range(8)] == [topology.weights(rank) for rank in range(8)]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5]], r"square \[N, N\], got the shape \[1, 2\]"),
        ([[1.0]], "FromMatrix needs at least 2 agents, got 1"),
        ([[0.5, 0.4], [0.5, 0.6]], "row 0 sums to 0.9"),
        ([[0.5, 0.500004], [0.500004, 0.5]], "row 0 sums to 1.000004;"),
        ([[0, 2], [1, 0]], "row 0 sums to 2"),
        ([[0.5, -1e-6], [0.5, 1]], r"got -1e-06 at \[0, 1\]"),
        ([[0.5, 0.5], [0.5]], "of numbers; got a list"),
        ({0: {1: 1}}, "of numbers; got a dict. Give rows, an array, a matrix of scipy.sparse or a graph of networkx"),
        ([[0.5, 0.5], [0.4, 0.6]], "column 0 sums to 0.9"),
        ([[1.5, -0.5], [-0.5, 1.5]], r"got -0.5 at \[0, 1\]"),
        ([[float("nan"), 0.5], [0.5, 0.5]], r"got nan at \[0, 0\]"),
    ],
)
def test_bad_matrix(matrix, message):
    with pytest.raises(ValueError, match=message):
        FromMatrix(matrix)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), r"FromMatrix\(3x3\) is not connected"),
        ([[0, 1], [1, 0]], r"FromMatrix never reaches agreement \(spectral gap 0\); give the diagonal some weight"),
    ],
)
def test_a_matrix_that_only_a_run_refuses(matrix, message):
    topology = FromMatrix(matrix)
    np.testing.assert_array_equal(topology.mixing_matrix(), matrix)
    with pytest.raises(ValueError, match=message):
        topology.bind(len(matrix))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Ring(1),
            r"Ring needs at least 2 agents, got 1; set devices=2 or more, or use Simulated",
        ),
        (lambda: Ring().bind(0), "Ring needs at least 2 agents, got 0"),
        (lambda: Bipartite(4, left=4), "1 <= left < agents, got left=4 of 4 agents"),
        (lambda: Bipartite(4, left=0), "got left=0 of 4 agents"),
        (lambda: Torus(8, rows=3), "got rows=3 of 8 agents"),
        (lambda: Torus(8, rows=0), "got rows=0 of 8 agents"),
        (lambda: ErdosRenyi(4, p=0), "0 < p <= 1, got p=0"),
        (lambda: ErdosRenyi(40, p=1e-6), "no connected graph of 40 agents in 100 draws"),
        (lambda: Ring(3).neighbors(3), r"Ring\(3\) has the ranks 0 to 2, got 3"),
        (lambda: Ring(3).neighbors(-1), "got -1"),
        (lambda: Ring(3).weights(3), r"Ring\(3\) has the ranks 0 to 2, got 3"),
        (lambda: Given(3, [(0, 1), (1, 3)]), r"Edges of 3 agents lie between the ranks 0 to 2, got \(1, 3\)"),
        (lambda: Given(3, [(0, 1), (1, -4)]), r"got \(1, -4\)"),
        (lambda: Given(3, [(0, 1), (1, 2, 0.5)]), r"a pair of ranks \(sender, receiver\), got \(1, 2, 0.5\)"),
        (lambda: Given(3, [(0, 1), (1, 2.0)]), r"a pair of ranks \(sender, receiver\), got \(1, 2.0\)"),
        (lambda: from_name("circle"), "Unknown topology 'circle'; known: ring, complete, bipartite, torus"),
        (
            lambda: FromMatrix(HALVES).bind(3),
            r"FromMatrix\(2x2\) describes 2 agents, but the run has 3",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_not_connected():
    class Pairs(Topology):
        def edges(self, agents):
            return [(rank, rank + 1) for rank in range(0, agents, 2)]

    assert Pairs(2).bind(2).neighbors(0) == [1]
    assert Pairs(4).neighbors(2) == [3], "one step of a graph that varies in time need not be connected"
    for topology in (Pairs(), Pairs(4)):
        with pytest.raises(ValueError, match=r"Pairs\(4\) is not connected: some agents never hear of others"):
            topology.bind(4)


EDGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20)


@given(EDGES, st.booleans())
def test_all_follows_from_the_edges(edges, one_way):
    topology = (GivenOneWay if one_way else Given)(6, edges)
    links = np.zeros((6, 6), dtype=bool)
    for sender, receiver in edges:
        links[receiver, sender] = sender != receiver
    links = links if one_way else links | links.T
    for rank in range(6):
        assert topology.in_neighbors(rank) == np.flatnonzero(links[rank]).tolist()
        assert topology.out_neighbors(rank) == np.flatnonzero(links[:, rank]).tolist()
    assert topology.symmetric == (links == links.T).all()
    assert topology.highest_degree() == (links.sum(axis=1).argmax(), links.sum(axis=1).max())
    assert_edges_match_weights(topology, topology.mixing_matrix())
    assert_weights_are_rows(topology)
    np.testing.assert_allclose(topology.mixing_matrix().sum(axis=0), 1)
    reached = np.linalg.matrix_power(np.eye(6, dtype=int) + links, 6) > 0
    if reached.all():
        assert topology.bind(6) is topology
    else:
        with pytest.raises(ValueError, match="is not connected"):
            topology.bind(6)


def test_a_negative_rank_counts_from_the_last():
    assert [Given(4, [(r, r - 1) for r in range(4)]).neighbors(r) for r in range(4)] == [
        Ring(4).neighbors(r) for r in range(4)
    ]


def test_own_graph_that_varies_in_time():
    topology = Matching().bind(4)
    assert [topology.at(step).neighbors(0) for step in range(4)] == [[1], [2], [1], [2]]
    assert topology.at(0).weights(3) == {3: 0.5, 2: 0.5}
    assert topology.neighbors(0) == [1, 2] and topology.symmetric
    assert len(topology.phases) == 2 and topology.highest_degree() == (0, 1)
    expected = [[0.5, 0.25, 0.25, 0], [0.25, 0.5, 0, 0.25], [0.25, 0, 0.5, 0.25], [0, 0.25, 0.25, 0.5]]
    np.testing.assert_array_equal(topology.mixing_matrix(), expected)
    assert topology.weights(3) == {3: 0.5, 1: 0.25, 2: 0.25}
    assert topology.spectral_gap() == pytest.approx(0.5)
    assert_gossip_averages(topology)
    assert [graph.neighbors(0) for graph in pickle.loads(pickle.dumps(topology)).phases] == [[1], [2]]


def test_one_step_may_leave_agents_without_neighbors():
    topology = Path(3, ([(0, 1)], [], [(1, 2)])).bind(3)
    assert [topology.at(step).neighbors(0) for step in range(3)] == [[1], [], []]
    assert topology.at(1).weights(2) == {2: 1.0}
    assert len(topology.phases) == 3
    np.testing.assert_allclose(topology.mixing_matrix()[0], [5 / 6, 1 / 6, 0])
    assert_gossip_averages(topology)


def test_a_graph_that_rests_at_some_steps():
    class Resting(Ring):
        def at(self, step):
            return self if step % 2 else Given(self.agents, [])

    topology = Resting(5).bind(5)
    assert [graph.neighbors(0) for graph in topology.phases] == [[], [1, 4]]
    np.testing.assert_array_equal(topology.mixing_matrix(), Ring(5).mixing_matrix())


def test_one_random_edge_at_each_step():
    class Meetings(Complete):
        def at(self, step):
            pair = np.random.default_rng(step).choice(self.agents, 2, replace=False)
            return Given(self.agents, [tuple(pair)])

    topology = Meetings(12).bind(12)
    assert topology.highest_degree()[1] == 1 and len(topology.phases) > 66
    assert 0 < topology.spectral_gap() < Complete(12).spectral_gap()


def test_matrices_as_steps():
    first, second = [[0, 1, 0], [1, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]]

    class Turns(Topology):
        def edges(self, agents):
            return [(0, 1), (1, 2)]

        def at(self, step):
            return FromMatrix([first, second][step % 2])

    topology = Turns().bind(3)
    np.testing.assert_array_equal(topology.mixing_matrix(), (np.array(first) + second) / 2)
    assert topology.at(0).weights(0) == {0: 0, 1: 1} and topology.at(0).weights(2) == {2: 1}
    assert_gossip_averages(topology)


class Nested(Topology):
    def edges(self, agents):
        return OnePeerExponential(agents).edges(agents)

    def at(self, step):
        return OnePeerExponential(self.agents)


class Swapping(Complete):
    def at(self, step):
        return FromMatrix([[0, 1], [1, 0]])


class Unbound(Ring):
    def at(self, step):
        return Complete()


class Shrinking(Complete):
    def at(self, step):
        return Ring(self.agents - step)


class Nobody(Complete):
    def at(self, step):
        return None


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        (Path(3, ([(0, 1)], [(1, 2)], [])).at(0), r"Given\(3, given=.* is not connected"),
        (Given(4, [(0, 1), (2, 3)]), "is not connected"),
        (Path(3, ([(0, 1)], [])), r"the edge \(2, 1\) in edges\(\), but none of the steps 0 to 111 has it"),
        (Path(3, ([(0, 1)], [(0, 2)])), r"has the edge \(2, 0\) at step 1, which edges\(\) lacks; add it there"),
        (Unbound(4), r"Unbound\(4\).at\(0\) must return a Topology of 4 agents, got Complete\(\)"),
        (Shrinking(4), r"Shrinking\(4\).at\(1\) must return a Topology of 4 agents, got Ring\(3\)"),
        (Nobody(4), r"must return a Topology of 4 agents, got None"),
        (Nested(4), r"must return the graph of one step, but OnePeerExponential\(4\) varies itself"),
        (Swapping(2), r"Swapping never reaches agreement"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_refuses_steps_that_do_not_fit(topology, message):
    with pytest.raises(ValueError, match=message):
        topology.bind(topology.agents)


def test_own_weights():
    topology = Weighted().bind(5)
    ring = Ring(5).mixing_matrix()
    np.testing.assert_array_equal(topology.mixing_matrix(), 0.5 * np.eye(5) + 0.5 * ring)
    assert topology.weights(1) == pytest.approx({1: 2 / 3, 0: 1 / 6, 2: 1 / 6})
    assert topology.spectral_gap() == pytest.approx(Ring(5).spectral_gap() / 2)
    assert_weights_are_rows(topology)
    assert_gossip_averages(topology)


def weighted(matrix):
    class Own(Path):
        def mixing_matrix(self):
            return matrix

    return Own(3)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(2), r"of 3 agents is \[3, 3\], got \[2, 2\]"),
        ([0.5, 0.5, 0], r"of 3 agents is \[3, 3\], got \[3\]"),
        ([[1.5, -0.5, 0], [-0.5, 1.5, 0], [0, 0, 1]], r"entries >= 0, got -0.5 at \[0, 1\]"),
        (
            [[0.5, 0.25, 0.25], [0.5, 0.5, 0], [0, 0.25, 0.75]],
            r"has 0.25 at \[0, 2\], but agent 0 does not receive from agent 2; add the edge \(2, 0\), or set",
        ),
        ([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], "Own never reaches agreement"),
    ],
)
def test_a_run_refuses_own_weights_that_do_not_fit(matrix, message):
    with pytest.raises(ValueError, match=message):
        weighted(matrix).bind(3)


def test_own_weights_of_a_step_are_checked_too():
    class Turns(Path):
        def at(self, step):
            return weighted(np.full((3, 3), 1 / 3))

    with pytest.raises(ValueError, match=r"has 0.333\d* at \[0, 2\], but agent 0 does not receive from agent 2"):
        Turns(3).bind(3)


def test_highest_degree():
    assert Star(70).highest_degree() == (0, 69)
    assert Ring(1000).highest_degree() == (0, 2)
    assert Bipartite(9).highest_degree() == (0, 7)
    assert OnePeerExponential(16).highest_degree() == (0, 1)
    assert Path(4, ([(0, 1)], [(1, 2), (2, 3)])).highest_degree() == (2, 2)
    assert GivenOneWay(4, [(0, 2), (1, 2), (2, 3), (3, 0), (3, 1)]).highest_degree() == (2, 2)


def test_many_agents_ask_for_neighbors_and_weights_without_a_matrix_each():
    asked = []

    class Counting(Ring):
        def mixing_matrix(self):
            asked.append(self)
            return super().mixing_matrix()

    topology = Counting(1000)
    for rank in range(1000):
        expected = sorted([(rank - 1) % 1000, (rank + 1) % 1000])
        assert topology.neighbors(rank) == topology.in_neighbors(rank) == topology.out_neighbors(rank) == expected
    assert not asked
    assert all(topology.weights(rank).keys() == {rank, *topology.neighbors(rank)} for rank in range(1000))
    assert len(asked) == 1


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_from_name(name):
    assert from_name(name) == TOPOLOGIES[name]()
    assert from_name(name).agents is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--topology=Ring"], Ring()),
        (["--topology=cga_lightning.topology.ErdosRenyi", "--topology.p=0.9"], ErdosRenyi(p=0.9)),
        (["--topology=FromMatrix", f"--topology.matrix={HALVES}"], FromMatrix(HALVES)),
        (["--topology=ring"], "ring"),
    ],
)
def test_command_line_builds_topologies(arguments, expected):
    jsonargparse = pytest.importorskip("jsonargparse")
    command_line = getattr(jsonargparse, "auto_cli", None) or jsonargparse.CLI

    def run(topology: Topology | str = "ring"):
        return topology

    assert command_line(run, args=arguments) == expected


def shortest_paths(neighbors, agents):
    """All distances, by Floyd and Warshall."""
    far = np.full((agents, agents), agents)
    np.fill_diagonal(far, 0)
    for rank in range(agents):
        far[rank, list(neighbors(rank))] = 1
    for middle in range(agents):
        far = np.minimum(far, far[:, [middle]] + far[[middle]])
    return far


@given(connected(9), st.data())
def test_the_spanning_tree_is_that_of_shortest_paths_with_the_smallest_diameter(topology, data):
    agents, tree = topology.agents, spanning_tree(topology)
    links = [(rank, other) for rank in range(agents) for other in tree.neighbors(rank)]
    assert len(links) == 2 * (agents - 1) and all(first in topology.neighbors(second) for first, second in links)
    inside, given_ones = shortest_paths(tree.neighbors, agents), shortest_paths(topology.neighbors, agents)
    assert inside.max() == tree.diameter < agents
    assert (inside[tree.root] == given_ones[tree.root]).all()
    radius = given_ones.max(axis=1).min()
    assert max(given_ones.max(), 2 * radius - 1) <= tree.diameter <= 2 * radius
    assert spanning_tree(pickle.loads(pickle.dumps(topology))) == tree  # as another agent has it
    weights = data.draw(st.lists(st.integers(0, 9), min_size=agents, max_size=agents))
    for rank in range(agents):
        behind = {k: inside[rank] == inside[k] + 1 for k in tree.neighbors(rank)}
        expected = {k: sum(w for w, there in zip(weights, mask, strict=True) if there) for k, mask in behind.items()}
        assert tree.beyond(rank, weights) == pytest.approx(expected)


def test_spanning_trees_of_known_graphs():
    assert [spanning_tree(graph).diameter for graph in (Ring(5), Ring(10), Complete(2), Complete(9))] == [4, 9, 1, 2]
    assert spanning_tree(Star(7)).parents == (0,) * 7
    assert spanning_tree(Complete(4)).root == 0


@pytest.mark.parametrize(
    ("topology", "message"),
    [(DirectedRing(3), "no way back"), (Matching(4), "varies in time"), (Ring(), "not bound to a number of agents")],
)
def test_no_spanning_tree_without_a_fixed_undirected_graph(topology, message):
    with pytest.raises(ValueError, match=message):
        spanning_tree(topology)
