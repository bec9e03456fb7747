"""Finds the skl2onnx exports that OpenVINO runs, by three ways; prints the table of docs/scikit-learn.md.

    pip install scikit-learn skl2onnx onnxruntime openvino==VERSION
    python survey.py [FOLDER]      # with FOLDER, also writes the models that run, as a model repository

A way counts if OpenVINO's outputs match those of ONNX Runtime for the exported model, to a thousandth.
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import skl2onnx
import sklearn
from plain_operators import plain
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn import ensemble as en
from sklearn import linear_model as lm
from sklearn import naive_bayes as bayes
from sklearn import neighbors as nb
from sklearn import preprocessing as pp
from sklearn import svm, tree
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.decomposition import PCA, KernelPCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.mixture import GaussianMixture
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline

# If these four are forbidden, skl2onnx uses plain operators; it has no alternative for the others.
AVOIDABLE = {"LinearClassifier", "LinearRegressor", "Scaler", "Normalizer"}
# OpenVINO misreads the ReduceLogSumExp of opset 13 to 17.
OPSET = {"": 18, "ai.onnx.ml": 3}

INTEGERS = [("x", Int64TensorType([None, 1]))]
STRINGS = [("x", StringTensorType([None, 1]))]
FLOATS = [("x", FloatTensorType([None, 4]))]
X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)
XR, YR = load_diabetes(return_X_y=True)
XR = XR[:, :4].astype(np.float32)
WORDS = np.array([["red"], ["green"], ["blue"]] * 4)
logistic = lm.LogisticRegression(max_iter=500)

CLASSIFIERS = [
    ("linear", logistic, lm.SGDClassifier(loss="log_loss"), LinearDiscriminantAnalysis()),
    ("linear, without probabilities", lm.RidgeClassifier(), lm.Perceptron(), svm.LinearSVC()),
    ("quadratic", QuadraticDiscriminantAnalysis()),
    ("trees", tree.DecisionTreeClassifier(max_depth=4), en.RandomForestClassifier(10), en.ExtraTreesClassifier(10)),
    ("boosting", en.GradientBoostingClassifier(n_estimators=9), en.AdaBoostClassifier(n_estimators=5)),
    ("boosting by histograms", en.HistGradientBoostingClassifier(max_iter=5)),
    ("ensembles", en.BaggingClassifier(n_estimators=5), OneVsRestClassifier(logistic)),
    ("calibrated", CalibratedClassifierCV(logistic)),
    ("support vectors", svm.SVC(), svm.NuSVC(nu=0.1)),
    ("neighbours", nb.KNeighborsClassifier()),
    ("naive Bayes", bayes.GaussianNB(), bayes.MultinomialNB(), bayes.BernoulliNB(), bayes.ComplementNB()),
    ("neural networks", MLPClassifier(max_iter=50)),
    ("pipelines", make_pipeline(pp.StandardScaler(), logistic)),
    ("pipelines", make_pipeline(SimpleImputer(), pp.StandardScaler(), PCA(2), en.RandomForestClassifier(10))),
    ("pipelines", make_pipeline(ColumnTransformer([("a", pp.StandardScaler(), [0, 1])]), logistic)),
]
REGRESSORS = [
    ("linear", lm.LinearRegression(), lm.Ridge(), lm.Lasso(), lm.BayesianRidge(), svm.LinearSVR()),
    ("linear", lm.PoissonRegressor()),
    ("trees", tree.DecisionTreeRegressor(max_depth=4), en.RandomForestRegressor(10, max_depth=5)),
    ("boosting", en.GradientBoostingRegressor(n_estimators=9), en.HistGradientBoostingRegressor(max_iter=5)),
    ("support vectors", svm.SVR()),
    ("neighbours", nb.KNeighborsRegressor()),
    ("neural networks", MLPRegressor(max_iter=50)),
    ("Gaussian process", GaussianProcessRegressor(alpha=1)),
]
OTHERS = [
    ("outliers", en.IsolationForest(n_estimators=9), nb.LocalOutlierFactor(novelty=True), svm.OneClassSVM()),
    ("clusters", KMeans(3, n_init=1), GaussianMixture(3, random_state=0)),
    ("projections", PCA(2), TruncatedSVD(2), KernelPCA(2, kernel="rbf")),
    ("scaling", pp.StandardScaler(), pp.RobustScaler(), pp.MaxAbsScaler()),
    ("scaling", pp.MinMaxScaler(), pp.Normalizer(), pp.QuantileTransformer(n_quantiles=9)),
    ("features", pp.Binarizer(), pp.PolynomialFeatures(2), pp.PowerTransformer(), pp.KBinsDiscretizer(3)),
    ("missing values", SimpleImputer(), KNNImputer()),
]


def cases() -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """Family, estimator, training data, types of the inputs."""
    for family, *estimators in CLASSIFIERS:
        yield from (("classifier, " + family, e, X, Y, FLOATS) for e in estimators)
    yield "classifier, Gaussian process", GaussianProcessClassifier(), X, (Y == 1).astype(int), FLOATS
    yield "classifier, string classes", lm.LogisticRegression(max_iter=501), X, np.array(["a", "b", "c"])[Y], FLOATS
    for family, *estimators in REGRESSORS:
        yield from (("regressor, " + family, e, XR[:99], YR[:99], FLOATS) for e in estimators)
    for family, *estimators in OTHERS:
        yield from ((family, e, X, None, FLOATS) for e in estimators)
    yield "features", SelectKBest(k=2), X, Y, FLOATS
    yield "categories, numbers", pp.OneHotEncoder(), np.arange(12).reshape(-1, 1) % 3, None, INTEGERS
    for encoder in (pp.OneHotEncoder(), pp.OrdinalEncoder()):
        yield "categories, strings", encoder, WORDS, None, STRINGS
    yield "text", TfidfVectorizer(), WORDS.ravel(), None, STRINGS


def exported(estimator: Any, types: Any, **how: Any) -> onnx.ModelProto:
    try:
        return skl2onnx.to_onnx(estimator, initial_types=types, options={"zipmap": False}, **how)
    except NameError:  # an estimator without this option
        return skl2onnx.to_onnx(estimator, initial_types=types, **how)


def kept(model: onnx.ModelProto) -> list[str]:
    """Only the probabilities of a classifier, all outputs of other models."""
    names = [value.name for value in model.graph.output]
    return [name for name in names if name == "probabilities"] or names


def told(error: Exception) -> str:
    text = " ".join(str(error).split())
    missing = text.partition("operations: ")[2].partition(" To facilitate")[0].partition(" --")[0]
    return (missing or text or type(error).__name__)[:110]


def difference(model: onnx.ModelProto, expected: dict[str, Any], rows: Any) -> float:
    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled(rows)
    worst = 0.0
    for port in compiled.outputs:
        name = next(iter(port.get_names() & expected.keys()))
        if expected[name].dtype.kind in "OU":
            worst = max(worst, float(np.any(answers[port] != expected[name])))
        else:
            scale = np.maximum(1, np.abs(expected[name].astype(float)))
            worst = max(worst, float(np.max(np.abs(answers[port] - expected[name]) / scale)))
    return worst


def way(estimator: Any, rows: Any, types: Any) -> tuple[str, str, onnx.ModelProto | None]:
    """The first way that gives the right results, or "none" and the reason."""
    try:
        first = exported(estimator, types)
    except Exception:
        first = None
    try:
        # skl2onnx refuses versions of ai.onnx.ml that its converters don't know.
        first = first or exported(estimator, types, target_opset=OPSET)
        session = onnxruntime.InferenceSession(first.SerializeToString(), providers=["CPUExecutionProvider"])
        expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": rows}), strict=True))
    except Exception as error:
        return "none", "the export fails: " + told(error), None
    why = ""
    for name in ("as exported", "black_op", "plain_operators.py"):
        try:
            model = first
            if name != "as exported":
                model = exported(estimator, types, target_opset=OPSET, black_op=AVOIDABLE)
                model = plain(model, kept(model)) if name == "plain_operators.py" else _only(model)
            if (worst := difference(model, expected, rows)) < 1e-3:
                return name, "", model
            why = f"**wrong by {worst:.2g}**"
        except Exception as error:
            why = told(error)
    return "none", why, None


def _only(model: onnx.ModelProto) -> onnx.ModelProto:
    return skl2onnx.helpers.onnx_helper.select_model_inputs_outputs(model, outputs=kept(model))


def main() -> None:
    warnings.filterwarnings("ignore")
    np.random.seed(0)
    print(f"scikit-learn {sklearn.__version__}, skl2onnx {skl2onnx.__version__}, OpenVINO {openvino.__version__}\n")
    print("| estimator | way | what stands against it |\n|---|---|---|")
    for family, estimator, rows, targets, types in cases():
        estimator.fit(rows, targets)
        first = rows[:9].reshape(-1, 1) if rows.ndim == 1 else rows[:9]
        name, why, model = way(estimator, first, types)
        steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
        label = " + ".join(type(step).__name__ for step in steps)
        print(f"| {family}: {label} | {name} | {why} |", flush=True)
        if model and len(sys.argv) > 1:
            folder = Path(sys.argv[1]) / "".join(c if c.isalnum() else "-" for c in label) / "1"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
