pragma cache_size = 20;
pragma journal_mode = delete;
create table t (id integer primary key, a integer, b text, c real);
insert into t (a, b, c)
  with recursive n (i) as (select 1 union all select i + 1 from n where i < 3000)
  select i * 7919 % 10007, 'row' || i * 31 % 500, i * 1.0 / 3 from n;
select count(*), sum(a), round(avg(c), 6) from t;
create index ta on t (a);
create index tb on t (b);
select b, count(*), round(sum(c), 6) from t group by b order by 2 desc, 1 limit 3;
begin;
update t set c = c * 2 where a % 3 = 0;
delete from t where id % 2 = 0;
select count(*), max(c) from t;
rollback;
select count(*) from t x join t y on x.a = y.a + 1;
update t set b = b || '-' || id where a < 2000;
insert into t (a, b, c) select a + 10007, upper(b), c from t where id % 3 = 0;
select sum(length(b)), max(b), count(distinct b) from t where b like '%9%';
select total_changes(), random() is not null, hex(randomblob(4));
delete from t where a < 3000;
vacuum;
pragma integrity_check;
select count(*), group_concat(b, ',') from (select b from t order by c desc limit 5);
