package sqlstore

import (
	"fmt"
	"math"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// The columns of a row. data is the whole record in driver's encoding; revision, seen and expires beside it are what
// counts, and differ from those inside data after a touch, which changes the columns alone.
//
// sweep is expires, rounded up to a multiple of sweepStep and counted in those. It is indexed in place of expires, so that
// most touches change no indexed column: InnoDB leaves the index alone then, and PostgreSQL writes the new version of
// the row into the same page and vacuums it without the index (HOT).

// sweepStep is how coarse the sweep column is.
const sweepStep = 15 * time.Minute

// sweepOf returns the sweep of a row that expires at ms. Far-away dates share the last number that a 32-bit column
// holds, which is in the year 63,000.
func sweepOf(ms int64) int64 {
	const step = int64(sweepStep / time.Millisecond)
	if ms <= 0 {
		return 0
	}
	return min((ms-1)/step+1, math.MaxInt32)
}

// sweepBefore returns the largest sweep of which all rows have expired at ms.
func sweepBefore(ms int64) int64 { return ms / int64(sweepStep/time.Millisecond) }

// row is what a statement returns of a record.
type row struct {
	id       []byte
	revision int64
	seen     int64
	expires  int64
	data     []byte
}

// record returns the record, unless it has expired at now.
func (r *row) record(now time.Time) (driver.Record, error) {
	if r.expires <= now.UnixMilli() {
		return driver.Record{}, driver.ErrNotFound
	}
	rec, err := driver.Decode(r.data)
	if err != nil {
		return driver.Record{}, err
	}
	rec.Revision, rec.Seen, rec.Expires = uint64(r.revision), driver.FromMillis(r.seen), driver.FromMillis(r.expires)
	return rec, nil
}

// recordArgs returns the arguments of a statement that writes rec.
func (s *Store) recordArgs(id driver.ID, rec driver.Record, prev uint64, withData bool) (*args, error) {
	expires := driver.Millis(rec.Expires)
	a := &args{
		argID:       id[:],
		argRevision: int64(rec.Revision),
		argSeen:     driver.Millis(rec.Seen),
		argExpires:  expires,
		argSweep:    sweepOf(expires),
		argPrev:     int64(prev),
		argNow:      time.Now().UnixMilli(),
	}
	if withData {
		if n, limit := rec.EncodedLen(), s.description.MaxBytes; limit > 0 && n > limit {
			return nil, fmt.Errorf("%w: %d bytes, the table takes %d", driver.ErrTooLarge, n, limit)
		}
		data, err := driver.Encode(rec)
		if err != nil {
			return nil, err
		}
		a[argData] = data
	}
	return a, nil
}
