package learned

// ShardSizes returns how many entries each shard has.
func (t *Table) ShardSizes() []int {
	var sizes []int
	for i := range t.shard {
		sizes = append(sizes, len(t.shard[i].slots))
	}
	return sizes
}
