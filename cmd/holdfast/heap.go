package main

import "os"

// heapFloor is how much a gateway may have in garbage before it is collected.
const heapFloor = 32 << 20

// raiseHeap lets the garbage collector run less often. What a gateway keeps is a few megabytes, and by default the collector
// runs whenever as much again was allocated: tens of times a second under load (docs/BENCHMARKS.md). Memory that
// is allocated and never written is not taken from the system, but counts for the collector. Whoever sets GOGC or GOMEMLIMIT
// knows better. What it returns is to be kept.
func raiseHeap() []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, heapFloor)
}
