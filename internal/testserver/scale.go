package testserver

import "os"

// Scale returns how much a test should do: usual, or soak if HOLDFAST_SOAK=1 is in the environment, as in `make soak`.
// The code is the same; only counts differ.
func Scale(usual, soak int) int {
	if os.Getenv("HOLDFAST_SOAK") == "1" {
		return soak
	}
	return usual
}
