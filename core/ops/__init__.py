"""Functional operators: each file has the public function, a pure-torch reference and its
dispatch."""
