"""A process that compiles kernels for sm_90 until threads have their layouts: a line of JSON asks, a line answers.

That is all of Triton's own work (TTGIR). What LLVM makes of the interpreter's large blocks would take seconds.

It is run by its text (`compiling.py`), so that it imports Triton and nothing of ours: half a second.
"""

import contextlib
import importlib.util
import json
import sys
import tempfile


def lower(kernel, signature, constexprs, options):
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    target = GPUTarget("cuda", 90, 32)
    backend = make_backend(target)
    source = ASTSource(kernel, signature, constexprs, {})
    parsed = backend.parse_options(options)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    implementation, modules = backend.get_codegen_implementation(parsed), backend.get_module_map()
    code = source.make_ir(target, parsed, implementation, modules, context)
    stages, metadata = {}, {"target": target, **parsed.__dict__}
    backend.add_stages(stages, parsed, source.language)
    for name in ("ttir", "ttgir"):
        code = stages[name](code, metadata)


def answer(request):
    """Return {"refused": the compiler's word or ""}, or {"unavailable": why} where nothing can be compiled."""
    try:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import CompilationError
        from triton.compiler.compiler import make_backend

        make_backend(GPUTarget("cuda", 90, 32))
    except Exception as error:
        return {"unavailable": f"{type(error).__name__}: {error}"}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/kernel.py"
        with open(path, "w", encoding="utf-8") as file:
            file.write(request["source"])
        spec = importlib.util.spec_from_file_location("kernel", path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            lower(getattr(module, request["name"]), request["signature"], module.CONSTEXPRS, request["options"])
        except CompilationError as error:
            words = [line for line in str(error).splitlines() if line.strip()]
            caret = next((i for i, line in enumerate(words) if line.strip() == "^"), 0)
            line = words[caret - 1].strip() if caret else ""
            cause = error
            while isinstance(cause.__cause__, CompilationError):  # inside of what the kernel calls
                cause = cause.__cause__
            return {"refused": " ".join(w.strip() for w in words[caret + 1 :]) or repr(cause), "line": line}
        except Exception as error:
            return {"refused": f"{type(error).__name__}: {error}", "line": ""}
    return {"refused": ""}


def serve():
    answers, sys.stdout = sys.stdout, sys.stderr
    with contextlib.suppress(Exception):
        import triton.compiler  # noqa: F401, while whoever asks is still busy
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()
