"""The program of a worker process that compares expressions with math-verify.

It reads one JSON request per line and writes one JSON reply per line: the verdict on a pair of LaTeX expressions, or the
text of one of them as sympy prints it. It runs without the package (no JAX, no NumPy of ours), so that it starts quickly
and holds little memory.
"""

import json
import os
import resource
import signal
import sys

MEMORY_BYTES = 2 << 30  # a power tower must fail here, not exhaust the machine
RELATIVE_TOLERANCE = 1e-9  # of two constants, on top of math-verify's own comparison


def make_compare():
    """Imports math-verify and returns the function that compares two expressions."""
    import logging

    logging.disable(logging.CRITICAL)
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    extraction = [LatexExtractionConfig()]

    def read(latex):
        # No time limit by signals and no fallback: the fallback takes the last number out of any text.
        found = parse(f"${latex}$", extraction, fallback_mode="no_fallback", parsing_timeout=None)
        return found if found and isinstance(found[0], (sympy.Basic, sympy.MatrixBase)) else None

    def compare(prediction, reference):
        # In a fixed order, because `verify` is not symmetric.
        sides = [read(side) for side in sorted((prediction, reference))]
        if None in sides:
            return False
        first, second = sides
        if isinstance(first[0], sympy.Expr) and isinstance(second[0], sympy.Expr):
            if (first[0] - second[0]).expand() == 0:  # an identity: most answers, at a tenth of the cost
                return True
        return verify(first, second, timeout_seconds=None) and same_value(first[0], second[0])

    def same_value(pred, target):
        """Refuses constants that only agree after math-verify's rounding to six decimals."""
        if not (getattr(pred, "is_number", False) and getattr(target, "is_number", False)):
            return True
        values = complex(pred.evalf(30)), complex(target.evalf(30))
        return abs(values[0] - values[1]) <= RELATIVE_TOLERANCE * max(map(abs, values))

    for expression in (r"\frac{1}{2}+0.5", "(x+1)^2-3x", r"2\sqrt{3}\pi", "y=2x+1", r"\sin(x)<5"):
        compare(expression, f"1+{expression}")  # builds the parser's tables
    return compare


def print_with_sympy(latex):
    """Returns an expression as sympy prints it; empty if latex2sympy cannot parse it."""
    from latex2sympy2_extended import latex2sympy

    return str(latex2sympy(latex))


def main():
    """Serves until the input ends. A request that outlives its limit ends the process, even if the parent is gone."""
    reply = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel's action: it needs no interpreter lock
    try:
        compare = make_compare()
    except Exception as error:
        reply.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    reply.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["limit_s"])
        try:
            answer = print_with_sympy(request["print"]) if "print" in request else bool(compare(*request["pair"]))
        except (Exception, RecursionError, MemoryError):  # whatever cannot be parsed or evaluated is not equal
            answer = "" if "print" in request else False
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply.write(json.dumps({"answer": answer}) + "\n")


if __name__ == "__main__":
    main()
