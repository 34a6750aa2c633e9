"""Parts of which backbones are made: each states how its parameters begin and in what precision
it computes."""
