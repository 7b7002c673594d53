"""Faults to plant in heads, their lowering and their explanation, and where: what the tests must find.

Each is a change of one text in one file. Most show in a part of a head's forms only: those with one value of an
option, or with one combination of two or three. `tests/test_faults.py` plants them, one at a time, in a copy of the
packages.
"""

from __future__ import annotations

from typing import NamedTuple

HEAD = (
    "train/heads/tversky/test_head.py::test_degenerate_inputs_have_the_right_logits_and_finite_gradients",
    "train/heads/tversky/test_head.py::test_every_parameter_of_every_form_learns",
    "train/heads/tversky/test_head.py::test_every_form_equals_the_definitions_in_float64",
    "train/heads/tversky/test_head.py::test_blocks_of_prototypes_join_without_a_seam",
    "train/heads/tversky/test_head.py::test_one_large_object_does_not_drown_the_small_ones",
    "train/heads/tversky/test_head.py::test_gradients_are_those_of_the_formula",
    "train/heads/tversky/test_head.py::test_objects_that_share_nothing_exceed_each_other_by_nothing",
)
LOWERING = (
    "export/lowering/test_heads.py::test_the_parts_are_those_of_the_definitions",
    "export/lowering/test_heads.py::test_degenerate_inputs_give_numbers",
    "export/lowering/test_heads.py::test_lowered_equals_the_definitions_in_float64",
    "export/lowering/test_heads.py::test_large_heads_are_cut_into_blocks",
)
OPERATORS = ("export/lowering/test_heads.py::test_a_form_has_no_more_operators_than_it_needs",)
EXPLANATION = (
    "runtime/explain/test_tversky.py::test_every_form_is_split_into_parts_that_add_up",
    "runtime/explain/test_tversky.py::test_the_nearest_prototypes_are_those_of_the_head",
    "runtime/explain/test_tversky.py::test_deleting_the_strongest_features_moves_the_logit_by_what_was_said",
)
LVQ = (
    "train/heads/lvq/test_head.py::test_every_form_equals_the_definition_in_float64",
    "train/heads/lvq/test_head.py::test_the_loss_is_the_weighted_mean_of_its_definition",
)
LOWERED_LVQ = ("export/lowering/test_lvq.py::test_lowered_equals_the_definition_in_float64",)
EXPLAINED_LVQ = (
    "runtime/explain/test_lvq.py::test_parts_features_and_prototypes_add_up_to_the_logit",
    "runtime/explain/test_lvq.py::test_no_attack_within_the_radius_changes_an_answer",
)
LOWERED_PARTS = ("export/lowering/test_parts.py::test_lowered_equals_the_definition",)
EXPLAINED_PARTS = ("runtime/explain/test_parts.py::test_a_logit_is_what_each_part_adds",)
LOWERED_MATCHING = ("export/lowering/test_matching.py::test_lowered_equals_the_definition",)
LOWERED_LOGIC = ("export/lowering/test_logic.py::test_it_gives_exactly_what_the_discrete_head_and_its_definition_give",)


class Fault(NamedTuple):
    """A fault, and the tests of which at least one must find it."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


_PLACES: list[tuple[str, tuple[str, ...], dict[str, tuple[str, str]]]] = [
    (
        "tnn_train/heads/tversky/similarity.py",
        HEAD,
        {
            "sign of beta": ("- beta * parts.prototype_only", "+ beta * parts.prototype_only"),
            "ratio: no theta": (
                "return common / (common + alpha * input_only + beta * prototype_only + theta)",
                "return common / (common + alpha * input_only + beta * prototype_only)",
            ),
            "ratio: alpha for beta": (
                "return common / (common + alpha * input_only + beta * prototype_only + theta)",
                "return common / (common + alpha * input_only + alpha * prototype_only + theta)",
            ),
            "smooth: theta in the denominator alone": ("return (common + theta) / (", "return common / ("),
            "hard: present at 0": ("(a > 0).to(a.dtype)", "(a >= 0).to(a.dtype)"),
            "sigmoid: whole salience": ("a.relu() * membership", "a.relu()"),
            "mean: not halved": ("pairs.dot(a.membership, b.salience)) / 2", "pairs.dot(a.membership, b.salience))"),
            "gmean: infinite gradient": ("torch.where(positive, x, 1).sqrt()", "x.sqrt()"),
            "alpha is not learned": ("- alpha * parts.input_only", "- alpha.detach() * parts.input_only"),
            "softmin: blocks overlap": (
                "zip(torch.split(self.b.salience, BLOCK, -2)",
                "zip(torch.split(self.b.salience.flip(-2), BLOCK, -2)",
            ),
            "minima: large values drown small ones": ("b.minimum(2 * largest_a)", "b"),
            "ratio and softmin: negative": ('if model == "contrast" else', "if True else"),
            "gmean and sigmoid: membership twice": (
                "_root(pairs.a.salience), _root",
                "_root(pairs.a.salience) * pairs.a.membership, _root",
            ),
            "max and sigmoid: membership twice": (
                "b.salience) - pairs.minima",
                "b.salience * b.membership) - pairs.minima",
            ),
            "ignorematch and sigmoid: hard": (
                "pairs.dot(1 - a.membership, b.salience)",
                "pairs.dot((a.membership <= 0.5).float().to(a.salience), b.salience)",
            ),
            "max and ignorematch: min": (
                "Parts(intersections[intersection]",
                'Parts(intersections["min" if intersection + difference == "maxignorematch" else intersection]',
            ),
            "diagonal and subtractmatch: no weights": (
                "self._weigh(self.b.salience).sum(-1)",
                "self.b.salience.sum(-1)",
            ),
            "excess and sigmoid: minima of the whole saliences": (
                "(self._weigh(x.salience * x.membership) for",
                "(self._weigh(x.salience) for",
            ),
            "diagonal and excess: no weights": (
                "(self._weigh(x.salience * x.membership) for",
                "(x.salience * x.membership for",
            ),
            "excess: less than none": ("(input_only - shared).clamp_min(0)", "(input_only - shared)"),
            "excess: rounded like a sum over all features": (
                "_minima(a, b) if torch.is_grad_enabled() else",
                "_minima(a, b) if True else",
            ),
            "diagonal, ratio and softmin: no weights": (
                "math.log(2) * pairs.dot(pairs.a.membership, pairs.b.membership)",
                "math.log(2) * pairs.a.membership @ pairs.b.membership.mT",
            ),
        },
    ),
    (
        "tnn_train/heads/tversky/layer.py",
        HEAD,
        {
            "diagonal: signed": ("values = x.abs() if", "values = x if"),
            "diagonal and sigmoid: sharpness": (
                "(values, self.config.sharpness)",
                "(values, self.config.sharpness if self.feature_bank is not None else 1.0)",
            ),
            "diagonal and normalize: not normalized": (
                "if self.config.normalize:\n            x = functional",
                "if self.config.normalize and self.feature_bank is not None:\n            x = functional",
            ),
            "diagonal and smooth: theta in the denominator alone": (
                "similarity.smooth_ratio if self.config.smooth else",
                "similarity.smooth_ratio if self.config.smooth and self.feature_bank is not None else",
            ),
            "ratio: raw numbers": ('return _positive(raw) if self.config.model == "ratio" else raw', "return raw"),
        },
    ),
    (
        "tnn_train/heads/tversky/projection.py",
        HEAD,
        {
            "ratio and linear: no scale": (
                "scaled = self.logit_scale *",
                "scaled = (self.logit_scale if self.linear is None else 1.0) *",
            ),
            "normalize and linear: no bias": (
                "precise(self.linear.bias))",
                "precise(self.linear.bias) * (not self.config.normalize))",
            ),
            "normalize, ratio and linear: no bias": (
                "precise(self.linear.bias))",
                'precise(self.linear.bias) * (not self.config.normalize or self.config.model != "ratio"))',
            ),
        },
    ),
    (
        "tnn_export/lowering/tversky/head.py",
        LOWERING,
        {
            "lowered sign of beta": (
                "[common - input_only - prototype_only]",
                "[common - input_only + prototype_only]",
            ),
            "lowered classes swapped": (
                "affine_map(weight, constant)",
                "affine_map(weight.flip(0), constant.flip(0))",
            ),
            "lowered not a number": (
                "affine_map(weight, constant)",
                "affine_map(weight, constant.index_fill(0, torch.tensor(0), torch.nan))",
            ),
            "lowered to what depends on the batch": (
                "values: Tensor = self.map(joined)",
                "values: Tensor = 0.01 * joined.mean() + self.map(joined)",
            ),
            "lowered softmin: too large": ("- torch.log1p(", "- 0.5 * torch.log1p("),
            "lowered hard: present at 0": ("(value > 0)", "(value >= 0)"),
            "lowered normalize: no shortest": (".clamp_min(self.shortest)", ""),
            "lowered blocks are too small": (
                "slice(start, start + size))",
                "slice(start, start + size - (start > 0)))",
            ),
            "lowered ratio and softmin: negative": ('if config.model == "ratio" and', 'if config.model != "ratio" and'),
            "lowered ratio without a map: no scale": ("[scale * numerator, denominator]", "[numerator, denominator]"),
            "lowered smooth and linear: theta in the denominator alone": (
                "if head.config.smooth:",
                "if head.config.smooth and head.linear is None:",
            ),
            "lowered parts of the smooth ratio: no theta": ("common + self.theta if self.is_smooth else", ""),
            "lowered excess and sigmoid: memberships once": (
                "self.minima(positive * present,",
                "self.minima(positive,",
            ),
            "lowered ratio and linear: bias scaled": (
                "nn.Parameter(_constant(linear.bias)",
                "nn.Parameter(scale * _constant(linear.bias)",
            ),
            "lowered contrast and linear: no bias": (" @ constant + _constant(linear.bias)", " @ constant"),
            "lowered contrast, linear and minima: no factors": (
                "(factors * _constant(linear.weight))",
                "_constant(linear.weight)",
            ),
            "lowered parts of the ratio: theta": (
                '        if head.config.model == "contrast":\n            common =',
                "        if True:\n            common =",
            ),
            "lowered diagonal and sigmoid: membership": (
                "return value * membership, membership",
                "return value if self.is_diagonal else value * membership, membership",
            ),
            "lowered diagonal and minima: no weights": ("bool((prototypes.weight != 1).any())", "False"),
            "lowered diagonal and softmin: no weights": (
                "(prototypes.weight * prototypes.membership[rows])",
                "prototypes.membership[rows]",
            ),
            "lowered max and ignorematch: min": (
                "[config.intersection]\n",
                '["min" if config.intersection + config.difference == "maxignorematch" else config.intersection]\n',
            ),
        },
    ),
    (
        "tnn_export/lowering/tversky/affine.py",
        LOWERING,
        {
            "lowered max: the sum of both": ("minima=-1.0)", "minima=0.0)"),
            "lowered ignorematch: sign of what both have": ("present=-salience,", "present=salience,"),
            "lowered diagonal and gmean: roots of the weights": (
                "p.weight * p.salience.sqrt()",
                "(p.weight * p.salience).sqrt()",
            ),
            "lowered diagonal and subtractmatch: no weights": (
                "constant=(p.weight * p.salience).sum(1)",
                "constant=p.salience.sum(1)",
            ),
            "lowered excess: subtractmatch": (
                "p.affine(positive=p.weight * p.membership) - shared",
                "p.affine(positive=p.weight) - shared",
            ),
            "lowered excess and sigmoid: M": ("if p.is_hard else", "if True else"),
            "lowered diagonal and excess: no weights": (
                "p.affine(present=p.weight * p.salience) - shared",
                "p.affine(present=p.salience) - shared",
            ),
            "lowered diagonal, ratio and softmin: no weights": (
                "math.log(2) * p.weight * p.membership",
                "math.log(2) * p.membership",
            ),
            "lowered diagonal and mean: no weights": ("present=p.weight * p.salience / 2", "present=p.salience / 2"),
            "lowered mean and sigmoid: hard": (
                "positive=p.weight * p.membership / 2",
                "positive=p.weight * p.membership.round() / 2",
            ),
        },
    ),
    (
        "tnn_export/lowering/tversky/head.py",
        OPERATORS,
        {
            "lowered with memberships that are not used": ("bool(stacked.present.any())", "True"),
            "lowered with weights that are all 1": ("bool((prototypes.weight != 1).any())", "True"),
            "lowered normalize and sigmoid: twice": (
                "membership = (self.sharpness * a).sigmoid()",
                "membership = (self.sharpness * (a + 1 if self.normalize else a)).sigmoid()",
            ),
        },
    ),
    (
        "tnn_export/lowering/tversky/affine.py",
        OPERATORS,
        {"lowered excess and hard: a sum of its own": ("if p.is_hard else", "if False else")},
    ),
    (
        "tnn_runtime/explain/measures.py",
        EXPLANATION,
        {
            "explained mean: not halved": ("a.membership * b.salience) / 2", "a.membership * b.salience)"),
            "explained max: the sum of both": (
                "- np.minimum(a.salience, b.salience)",
                "- 0 * np.minimum(a.salience, b.salience)",
            ),
            "explained softmin: min": ("-np.logaddexp(-a.salience, -b.salience)", "np.minimum(a.salience, b.salience)"),
            "explained subtractmatch: both ways": (
                "np.maximum(a.salience - b.salience, 0)",
                "np.abs(a.salience - b.salience)",
            ),
            "explained excess: subtractmatch": ("a.salience * b.membership - np.minimum", "a.salience - np.minimum"),
            "explained excess and sigmoid: minima of the whole saliences": (
                "np.minimum(a.salience * a.membership, b.salience * b.membership)",
                "np.minimum(a.salience * 1, b.salience)",
            ),
            "explained sigmoid: whole salience": ("np.maximum(values, 0) * membership)", "np.maximum(values, 0))"),
            "explained sigmoid: sharpness": ("-sharpness * values", "-values"),
            "explained ratio and softmin: negative": (
                'if is_ratio and intersection == "softmin"',
                'if not is_ratio and intersection == "softmin"',
            ),
            "explained gmean and sigmoid: membership twice": (
                "np.sqrt(a.salience * b.salience)",
                "(np.sqrt(a.salience * b.salience) * a.membership)",
            ),
            "explained product and sigmoid: membership twice": (
                "return a.salience * b.salience\n",
                "return a.salience * b.salience * b.membership\n",
            ),
            "explained ignorematch and sigmoid: hard": (
                "a.salience * (1 - b.membership)",
                "a.salience * (b.membership <= 0.5)",
            ),
            "explained ratio, softmin and sigmoid: membership": (
                "math.log(2) * a.membership * b.membership",
                "math.log(2) * np.ceil(a.membership - 0.5) * b.membership",
            ),
        },
    ),
    (
        "tnn_runtime/explain/tversky.py",
        EXPLANATION,
        {
            "explained beta: alpha": ("(self._beta * weight)", "(self._alpha * weight)"),
            "explained diagonal: no weights": ("(self._theta * weight)", "self._theta"),
            "explained smooth: theta in the denominator alone": ("common + offset if smooth else common", "common"),
            "explained smooth and linear: nothing of theta": ("self._smooth * self._offset *", "0.0 *"),
            "explained smooth: without theta": ("smooth=self.smooth)", "smooth=False)"),
        },
    ),
    (
        "tnn_train/heads/lvq/layer.py",
        LVQ,
        {
            "lvq mixture: classes with more prototypes win": (
                "(by_class - self.log_copies).logsumexp(2)",
                "by_class.logsumexp(2)",
            ),
            "lvq: features that were left out count": (
                "(self.latent(x) - self.centre) * self.kept",
                "self.latent(x) - self.centre",
            ),
            "lvq vector: roots of the relevances": ("vectors * omega if", "vectors * omega.abs().sqrt() if"),
            "lvq: distances from another point than the logits": ("squares - 2 * images", "squares - images"),
        },
    ),
    (
        "tnn_train/heads/lvq/loss.py",
        LVQ,
        {
            "lvq swish: sigmoid": ("mu * torch.sigmoid(beta * mu)", "torch.sigmoid(beta * mu)"),
            "lvq loss: no margin": (
                "relative_differences(distances) + config.margin",
                "relative_differences(distances)",
            ),
            "lvq loss: all classes weigh the same": ("shares if weight is None else shares * weight", "shares"),
        },
    ),
    (
        "tnn_export/lowering/lvq.py",
        LOWERED_LVQ,
        {
            "lowered lvq mixture: classes with more prototypes win": ("grouped - self.log_copies", "grouped"),
            "lowered lvq: features that were left out count": ("omega * head.kept.cpu()", "omega"),
            "lowered lvq: prototypes in the wrong classes": ("if not self.is_sorted:", "if False:"),
            "lowered lvq: confidence is no share of both": ("/ (other + best).clamp_min", "/ other.clamp_min"),
        },
    ),
    (
        "tnn_runtime/explain/lvq.py",
        EXPLAINED_LVQ,
        {
            "explained lvq certificate: twice as far": (
                "np.divide(np.maximum(ahead, 0), steepest,",
                "np.divide(2 * np.maximum(ahead, 0), steepest,",
            ),
            "explained lvq mixture: the nearest alone": (
                "return np.asarray(softmax(leads[None])[0])",
                "return np.asarray(np.arange(len(leads)) == leads.argmax(), np.float64)",
            ),
        },
    ),
    (
        "tnn_export/lowering/parts.py",
        LOWERED_PARTS,
        {
            "lowered parts: the mean over the places": (
                "self.scores(maps).amax((2, 3))",
                "self.scores(maps).mean((2, 3))",
            ),
            "lowered parts: similarity without epsilon": (
                "(1 - self.epsilon) / (self.epsilon - scores)",
                "1 / (self.epsilon - scores)",
            ),
            "lowered parts: the sum over the channels": ("-2 / apart.shape[1] * apart", "-2 * apart"),
            "lowered pipnet: negative presences": (
                "torch.relu((scores - self.least) / (1 - self.least))",
                "(scores - self.least) / (1 - self.least)",
            ),
        },
    ),
    (
        "tnn_runtime/explain/parts.py",
        EXPLAINED_PARTS,
        {
            "explained parts: the mean over the places": ("apart.min(1)", "apart.mean(1)"),
            "explained pipnet: presences from 0 on": (
                "np.maximum((present - least) / (1 - least), 0)",
                "np.maximum(present, 0)",
            ),
        },
    ),
    (
        "tnn_export/lowering/matching.py",
        LOWERED_MATCHING,
        {
            "lowered matching: no ReLU": (
                "y = torch.relu(torch.addmm(drive, y, self.kept))",
                "y = torch.addmm(drive, y, self.kept)",
            ),
            "lowered matching: not centred": (
                "return drive, -drive @ head.scaling.center.cpu().double()",
                "return drive, 0 * drive[:, 0]",
            ),
            "lowered matching: few iterations": ("int(head.settled) - 1", "int(head.settled) // 4"),
        },
    ),
    (
        "tnn_export/lowering/logic.py",
        LOWERED_LOGIC,
        {
            "lowered logic: negated votes count double": ("constant + (signs < 0).sum()", "constant"),
            "lowered logic: nand for and not": ("& ~h.index_select", "& h.index_select"),
            "lowered logic: no temperature": ("+ self.constants) / self.temperature", "+ self.constants)"),
        },
    ),
]
"""Files, the tests of each, and its faults: a name, the text before and the text after."""

FAULTS = [
    Fault(name, file, before, after, tests)
    for file, tests, faults in _PLACES
    for name, (before, after) in faults.items()
]
