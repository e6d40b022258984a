//go:build unix

package filestore_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
)

// history is what processes did and what they were told.
type history struct {
	state uint64 // the revision at the start, 0 for none; revision 1 is the one that expires
	maybe bool   // a write that is ErrUnavailable may or may not have happened
	ops   []*operation
	clock int

	broken bool // by a kill or a fault
}

type operation struct {
	call
	process    int
	start, end int // end is math.MaxInt for one that was killed
	loaded     uint64
	err        error
}

func (h *history) begin(process int, c call) *operation {
	h.clock++
	op := &operation{call: c, process: process, start: h.clock, end: math.MaxInt}
	h.ops = append(h.ops, op)
	return op
}

func (h *history) end(op *operation, err error) {
	h.clock++
	op.end, op.err = h.clock, err
}

// isUnknown reports whether op may or may not have happened.
func (h *history) isUnknown(op *operation) bool {
	return h.maybe && op.end != math.MaxInt && errors.Is(op.err, driver.ErrUnavailable)
}

// apply returns the state after op, and whether a store in that state would have answered so.
func (op *operation) apply(state uint64) (next uint64, ok bool) {
	killed := op.end == math.MaxInt
	switch op.op {
	case "Load":
		if state == 0 {
			return 0, killed || errors.Is(op.err, driver.ErrNotFound)
		}
		return state, killed || op.err == nil && op.loaded == state
	case "Save":
		if state != op.prev {
			return state, killed || errors.Is(op.err, driver.ErrConflict)
		}
		return op.rev, killed || op.err == nil
	case "Touch":
		switch {
		case state == 0:
			return 0, killed || errors.Is(op.err, driver.ErrNotFound)
		case state != op.prev:
			return state, killed || errors.Is(op.err, driver.ErrConflict)
		}
		return op.rev, killed || op.err == nil
	case "Delete", "Delete on a full disk":
		return 0, killed || op.err == nil
	case "sweep":
		return state, killed || op.err == nil
	case "expire":
		if state == 1 {
			state = 0
		}
		return state, true
	}
	panic(op.op)
}

// linearizable reports whether there is an order of the operations that explains all results: one that ended before
// another began comes before it, and one that was killed may be left out.
func (h *history) linearizable() bool {
	type point struct{ done, state uint64 }
	seen := make(map[point]bool)
	var search func(p point) bool
	search = func(p point) bool {
		if seen[p] {
			return false
		}
		seen[p] = true
		first := math.MaxInt // the earliest end of those that are left
		left := false
		for i, op := range h.ops {
			if p.done&(1<<i) == 0 {
				first = min(first, op.end)
				left = left || op.end != math.MaxInt
			}
		}
		if !left {
			return true
		}
		for i, op := range h.ops {
			if p.done&(1<<i) != 0 || op.start > first {
				continue
			}
			if h.isUnknown(op) {
				killed := *op
				killed.end = math.MaxInt
				next, _ := killed.apply(p.state)
				if search(point{p.done | 1<<i, p.state}) || search(point{p.done | 1<<i, next}) {
					return true
				}
				continue
			}
			if next, ok := op.apply(p.state); ok && search(point{p.done | 1<<i, next}) {
				return true
			}
		}
		return false
	}
	return search(point{0, h.state})
}

func (h *history) String() string {
	var b strings.Builder
	for _, op := range h.ops {
		fmt.Fprintf(&b, "process %2d  %3d to %3d  %v", op.process, op.start, op.end, op.call)
		if op.op == "Load" {
			fmt.Fprintf(&b, " = %d", op.loaded)
		}
		fmt.Fprintf(&b, ", %v\n", op.err)
	}
	return b.String()
}

func TestLinearizable(t *testing.T) {
	op := func(start, end int, c call, loaded uint64, err error) *operation {
		return &operation{call: c, start: start, end: end, loaded: loaded, err: err}
	}
	tests := []struct {
		name string
		ops  []*operation
		want bool
	}{
		{"one winner", []*operation{op(1, 3, save(1, 2), 0, nil), op(2, 4, save(1, 3), 0, driver.ErrConflict)}, true},
		{"two winners", []*operation{op(1, 3, save(1, 2), 0, nil), op(2, 4, save(1, 3), 0, nil)}, false},
		{"no winner", []*operation{op(1, 3, save(1, 2), 0, driver.ErrConflict), op(2, 4, save(1, 3), 0, driver.ErrConflict)}, false},
		{"resurrected", []*operation{op(1, 5, save(1, 2), 0, nil), op(2, 3, del, 0, nil), op(6, 7, load, 2, nil)}, false},
		{"saved, then deleted", []*operation{op(1, 5, save(1, 2), 0, nil), op(2, 3, del, 0, nil), op(6, 7, load, 0, driver.ErrNotFound)}, true},
		{"read before it was saved", []*operation{op(1, 2, load, 2, nil), op(3, 4, save(1, 2), 0, nil)}, false},
		{"stale read", []*operation{op(1, 2, save(1, 2), 0, nil), op(3, 4, load, 1, nil)}, false},
		{"killed, done", []*operation{op(1, math.MaxInt, save(1, 2), 0, nil), op(3, 4, load, 2, nil)}, true},
		{"killed, not done", []*operation{op(1, math.MaxInt, save(1, 2), 0, nil), op(3, 4, load, 1, nil)}, true},
		{"killed, done and undone", []*operation{
			op(1, math.MaxInt, save(1, 2), 0, nil), op(3, 4, load, 2, nil), op(5, 6, load, 1, nil),
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &history{state: 1, ops: tt.ops}
			if got := h.linearizable(); got != tt.want {
				t.Errorf("linearizable() = %v, want %v, of\n%s", got, tt.want, h)
			}
		})
	}
}
