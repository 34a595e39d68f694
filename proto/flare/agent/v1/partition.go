package agentv1

// OptionalPartition turns a partition's number into its form in a message,
// where none (-1 elsewhere) is an absent field: the number 0 must not be, for
// it is a partition.
func OptionalPartition(number int) *uint32 {
	if number < 0 {
		return nil
	}
	n := uint32(number)
	return &n
}

// PartitionNumber is the reverse of OptionalPartition: -1 for an absent field.
func PartitionNumber(p *uint32) int {
	if p == nil {
		return -1
	}
	return int(*p)
}
