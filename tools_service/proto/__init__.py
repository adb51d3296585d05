"""The wire format. After a change of tools.proto, regenerate the stubs from the repository root:

python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. tools_service/proto/tools.proto
"""
