package sqlstore

import (
	"context"
	"iter"
	"strconv"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// listPortion is how many rows are loaded together.
const listPortion = 100

// List yields every record, in the order of their IDs, one statement for a hundred. What is not a record of this
// release (corrupt, of an unknown version) is left out.
func (s *Store) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		after := []byte{}
		for {
			rows, err := s.portion(ctx, after)
			if err != nil {
				yield(driver.Item{}, err)
				return
			}
			now := time.Now()
			for _, r := range rows {
				after = r.id
				rec, err := r.record(now)
				if err != nil || len(r.id) != len(driver.ID{}) {
					continue
				}
				if !yield(driver.Item{ID: driver.ID(r.id), Record: rec}, nil) {
					return
				}
			}
			if len(rows) < listPortion {
				return
			}
		}
	}
}

// portion returns the rows that follow an ID. The first ID is the empty one.
func (s *Store) portion(ctx context.Context, after []byte) ([]row, error) {
	var portion []row
	err := s.call(ctx, func(ctx context.Context) error {
		portion = portion[:0]
		rows, err := s.db.QueryContext(ctx, s.list.sql, s.list.values(&args{argID: after, argLimit: int64(listPortion)})...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r row
			if err := rows.Scan(&r.id, &r.revision, &r.seen, &r.expires, &r.data); err != nil {
				return err
			}
			portion = append(portion, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	return portion, nil
}

// Stat counts rows by the index, without reading them.
func (s *Store) Stat(ctx context.Context) (driver.Stat, error) {
	now := time.Now().UnixMilli()
	a := &args{argNow: now, argSweep: sweepBefore(now), argName: s.config.Table}
	st := driver.Stat{Records: -1, Expired: -1, Bytes: -1}
	var all, old, recent int64
	for _, q := range []struct {
		text string
		into *int64
	}{
		{"SELECT COUNT(*) FROM {table}", &all},
		{"SELECT COUNT(*) FROM {table} WHERE sweep <= {sweep}", &old},
		{"SELECT COUNT(*) FROM {table} WHERE sweep = {sweep} + 1 AND expires <= {now}", &recent},
		{s.dialect.Size, &st.Bytes},
	} {
		c := s.dialect.compile(q.text, s.config.Table)
		if err := s.call(ctx, func(ctx context.Context) error { return s.queryRow(ctx, c, a, q.into) }); err != nil {
			return driver.Stat{Records: -1, Expired: -1, Bytes: -1}, err
		}
	}
	st.Expired = old + recent
	st.Records = max(all-st.Expired, 0)
	st.Facts = append(st.Facts,
		driver.Fact{Name: "table", Value: s.config.Table},
		driver.Fact{Name: "bytes are", Value: s.dialect.SizeNote},
		driver.Fact{Name: "connections in use", Value: strconv.Itoa(s.db.Stats().InUse)})
	return st, nil
}
