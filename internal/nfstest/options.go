//go:build linux

package nfstest

import (
	"fmt"
	"time"
)

// Options say what the server is like.
type Options struct {
	// ClockSkew is by how much the server's clock is ahead of this machine's.
	ClockSkew time.Duration
	// Granularity is the step of the server's clock, which says when a file was changed: on an NFSv3 mount, two changes within
	// one step look like one (4 ms are usual on Linux before 6.13). 0: every change has a time of its own.
	Granularity time.Duration
}

// ClientOptions are those of mount(8) for one client; see nfs(5). The zero value is what NFSv3 mounts are by default.
type ClientOptions struct {
	// Version is 3 or 4. 0: 3. An NFSv4 mount opens a file by its name, and tells changes apart by a counter. It has no
	// delegations here, and CLOSE is not sent.
	Version int
	// AcRegMin, AcRegMax, AcDirMin and AcDirMax say how long attributes of files, and of directories, are believed: the minimum
	// after a change, then twice as long each time, up to the maximum. 0: 3, 60, 30 and 60 s. Time goes on by Advance.
	AcRegMin, AcRegMax, AcDirMin, AcDirMax time.Duration
	// NoAC has attributes never believed and data written at once.
	NoAC bool
	// NoCTO lets files be opened without asking the server.
	NoCTO bool
	// LookupCache is "all", "pos" or "none". "": "all".
	LookupCache string
	// NoReaddirPlus has a list of a directory tell nothing of the files in it (nordirplus). Otherwise it is READDIRPLUS, and
	// who has listed a directory believes its names for as long as if they had been looked up.
	NoReaddirPlus bool
	// Soft lets requests fail when there was no answer for Timeout, with EIO or, if SoftErr is true, ETIMEDOUT. The server may
	// execute them later.
	Soft, SoftErr bool
	// Timeout of a soft mount. 0: 100 ms, which nfs(5) has in minutes.
	Timeout time.Duration
	// RSize and WSize are the bytes of a READ and of a WRITE. 0: 1 MiB.
	RSize, WSize int
	// DirEntries is how many names an answer to READDIR holds. 0: 1,000.
	DirEntries int
}

func (o ClientOptions) withDefaults() ClientOptions {
	set(&o.Version, 3)
	set(&o.AcRegMin, 3*time.Second)
	set(&o.AcRegMax, 60*time.Second)
	set(&o.AcDirMin, 30*time.Second)
	set(&o.AcDirMax, 60*time.Second)
	set(&o.LookupCache, "all")
	set(&o.Timeout, 100*time.Millisecond)
	set(&o.RSize, 1<<20)
	set(&o.WSize, 1<<20)
	set(&o.DirEntries, 1000)
	return o
}

func set[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func (o ClientOptions) validate() error {
	switch {
	case o.Version != 3 && o.Version != 4:
		return fmt.Errorf("client options: version %d (want 3 or 4)", o.Version)
	case o.LookupCache != "all" && o.LookupCache != "pos" && o.LookupCache != "none":
		return fmt.Errorf("client options: lookup cache %q (want all, pos or none)", o.LookupCache)
	}
	return nil
}
