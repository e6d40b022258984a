package sqlstore

import "time"

// Compile returns a statement of d as it is sent, and the names of its arguments.
func Compile(d Dialect, text, table string) (sql string, names []string) {
	s := d.compile(text, table)
	for _, a := range s.args {
		names = append(names, argNames[a])
	}
	return s.sql, names
}

// SweepOf, SweepBefore and Rests show what the clean-up reckons with.
func SweepOf(t time.Time) int64     { return sweepOf(t.UnixMilli()) }
func SweepBefore(t time.Time) int64 { return sweepBefore(t.UnixMilli()) }

// Rests returns how long the clean-up rests after batches of 1,000 rows that took so long.
func Rests(took ...time.Duration) (rests []time.Duration) {
	p := &pace{}
	for _, d := range took {
		rests = append(rests, p.rest(d, 1000))
	}
	return rests
}
