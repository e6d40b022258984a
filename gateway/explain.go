package gateway

import "fmt"

// steps says in words, one after the other, why a request goes where it goes. A nil *steps keeps nothing, as for all
// requests but those of Explain. It never gets a token, a cookie's value or a whole ID.
type steps struct{ lines []string }

// add appends a step. Its arguments may be allocated even if s is nil: where requests pass, ask s != nil first.
func (s *steps) add(format string, args ...any) {
	if s != nil {
		s.lines = append(s.lines, fmt.Sprintf(format, args...))
	}
}
